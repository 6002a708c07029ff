#!/bin/bash
# What `make install` installs works from where it is, xapi gets the drivers that were chosen and no others, and
# `make uninstall` takes it all away.
set -euo pipefail
cd "$(dirname "$0")/../.."

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
smdir=$root/opt/xensource/sm plugin=$root/etc/xapi.d/plugins/tapdisk-pause v3=/usr/libexec/xapi-storage-script
run() {
    make --no-print-directory "$1" DESTDIR="$root" PREFIX=/usr SMDIR=/opt/xensource/sm PLUGINDIR=/etc/xapi.d/plugins V3DIR=$v3 \
        "${@:2}" > "$root/said"
}
linked() { (cd "$smdir" && find . -type l -lname /usr/sbin/sm -printf '%P ' | xargs -n 1 | sort | xargs); }
wrong() { echo "$1"; exit 1; }
mkdir -p "${plugin%/*}"
echo 'the stock plug-in' > "$plugin"

mkdir -p "$smdir"
echo python > "$smdir/LVMSR"
# The drivers of XCP-ng are links to the Python files beside them.
ln -s FileSR.py "$smdir/FileSR"
run install
# shellcheck disable=SC2013 # names without blanks
for driver in $(sed -n 's/.*executable: "\(.*\)",.*/\1/p' src/sr/*.rs); do
    "$root/usr/sbin/$driver" --version | grep -q "^$driver " || wrong "$driver does not know who it is"
    case $driver in
    LVMoISCSISR | LVMoHBASR) [ ! -e "$smdir/$driver" ] || wrong "xapi got $driver unasked" ;;
    ZFSSR) [ ! -e "$smdir/$driver" ] || wrong "xapi got $driver, which no test ran with the kernel's ZFS, unasked" ;;
    *) [ "$(readlink "$smdir/$driver")" = /usr/sbin/sm ] || wrong "xapi did not get $driver" ;;
    esac
done
# A second time the stock plug-in stays what it is; an update of it becomes the one that is kept.
for stock in 'the stock plug-in' 'a newer one'; do
    support/stand-in put /usr/sbin/sm "$plugin"
    [ "$(readlink "$plugin")" = /usr/sbin/sm ]
    [ "$(cat "$plugin.stock")" = "$stock" ] || wrong 'the stock plug-in was not kept'
    rm "$plugin"
    echo 'a newer one' > "$plugin"
done
support/stand-in put /usr/sbin/sm "$plugin"
for name in coalesce-leaf on-slave lvhd-thin trim; do
    [ "$(readlink "${plugin%/*}/$name")" = /usr/sbin/sm ] || wrong "xapi did not get the plug-in $name"
done
for unit in 'sm-collect@.service' 'sm-collect@.timer' 'sm-collect-xapi@.service' sm-metrics.service sm-metrics.timer \
    'sm-backup@.service' 'sm-backup@.timer'; do
    [ -s "$root/usr/lib/systemd/system/$unit" ] || wrong "$unit is not installed"
done
grep -q '^ExecStart=/usr/sbin/sm sr_collect ' "$root/usr/lib/systemd/system/sm-collect@.service" || wrong 'the unit starts something else'
for file in man/man8/sm.8 bash-completion/completions/sm zsh/site-functions/_sm fish/vendor_completions.d/sm.fish; do
    [ -s "$root/usr/share/$file" ] || wrong "$file is not installed"
done
installed=$(linked)
for method in volume/org.xen.xapi.storage.sm-nfs/SR.ls datapath/sm/Datapath.activate; do
    [ "$(readlink "$root$v3/$method")" = /usr/sbin/sm ] || wrong "xapi-storage-script did not get $method"
done
for sr_type in file lvm sm-lvm sm-iso sm-zfs; do
    [ ! -e "$root$v3/volume/org.xen.xapi.storage.$sr_type" ] || wrong "xapi-storage-script got $sr_type unasked"
done

run uninstall
left=$(find "$root/usr" ! -type d)
[ -z "$left" ] || wrong "uninstall left $left"
[ -z "$(linked)" ] || wrong "uninstall left $(linked)"
[ "$(cd "$root$v3" && find . | sort | xargs)" = '. ./datapath ./volume' ] || wrong "uninstall left $(find "$root$v3")"
[ "$(cat "$smdir/LVMSR")" = python ] || wrong "uninstall took what was not ours"
[ "$(cat "$plugin")" = 'a newer one' ] || wrong 'the stock plug-in did not come back'
[ "$(ls "${plugin%/*}")" = tapdisk-pause ] || wrong "uninstall left $(ls "${plugin%/*}")"
[ "$(readlink "$smdir/FileSR")" = FileSR.py ] || wrong 'the stock FileSR did not come back'

run install DRIVERS='FileSR LVMSR'
[ "$(linked)" = 'FileSR LVMSR' ] || wrong "of FileSR and LVMSR xapi got $(linked)"
if run install DRIVERS='FileSR NoSR' 2> /dev/null; then wrong 'a driver that there is not was installed'; fi
run uninstall
[ "$(cd "$smdir" && echo *) $(cat "$smdir/LVMSR")" = 'FileSR LVMSR python' ] || wrong "uninstall left $(ls "$smdir")"
echo "installed, ran and uninstalled sm and the drivers $installed"
