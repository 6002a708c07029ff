#!/bin/bash
# The Debian package and the rpms are installed in a root of their own, work there, are installed again, and are removed: what
# was there before is there again. The rpm for xapi meets a package `sm` that owns the files it replaces, and updates of it.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ "$(id -u)" != 0 ]; then
    echo "SKIP: a root of its own wants root"
    [ -z "${SM_TESTS_SKIP_NOTHING-}" ]
    exit
fi

scratch=$(mktemp -d "${TMPDIR:-/tmp}/sm-packages.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
wrong() { echo "$1"; exit 1; }

# The root: what Debian calls essential, and apt. Made once, of the mirror that apt uses here.
base=/var/cache/xcp-sm-tests/root.tar
if [ ! -e $base ]; then
    # shellcheck disable=SC2016 # apt's own variables
    read -r mirror suite < <(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 'Component: main' | head -n 1)
    mkdir -p ${base%/*}
    mmdebstrap --quiet --mode=root --variant=apt "$suite" "$scratch/root.tar" "$mirror" > "$scratch/said" 2>&1 || { cat "$scratch/said"; exit 1; }
    mv "$scratch/root.tar" $base.new
    mv $base.new $base
fi
fresh() {
    root=$scratch/$1
    mkdir "$root"
    tar -C "$root" -xpf $base
}
# In a mount namespace of its own, so that nothing stays mounted whatever ends the test.
inside() { unshare --mount --pid --fork --mount-proc="$root/proc" chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
# Every file with its kind, mode and content, but for the records of the tools.
snapshot() {
    (cd "$root" && find . -xdev \( -path ./var/lib/dpkg -o -path ./var/lib/rpm -o -path ./var/lib/apt -o -path ./var/cache -o -path ./var/log -o -path ./proc \
        -o -path ./tmp -o -path ./var/lock -o -path ./run \) -prune -o -printf '%P %y %m %l\n' -type f -exec md5sum {} +) | sort
}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

# What both kinds have to bring, and whether it works.
works() { # zsh's directory
    local id=87b8646b-b800-9500-cb7b-af3b74e02f5c disk driver
    inside mkdir -p /srv/sr0
    inside sm sr_create --name fast -t file -d /srv/sr0 $id
    disk=$(inside sm vdi_create fast 3G --label web)
    inside sm vdi_snapshot fast/web > /dev/null
    inside sm vdi_export "fast/$disk" /srv/web.qcow2
    [ "$(inside FileSR vdi_get_params -d /srv/sr0 $id "$disk" | grep -c 'virtual_size . 3221225472')" = 1 ] || wrong 'the disk is not what was asked for'
    inside sm sr_delete fast --yes
    inside rm -r /srv/sr0 /srv/web.qcow2
    inside rm -r /etc/sm
    inside find /var/lib/sm -delete 2> /dev/null || true
    for driver in $(sed -n 's/.*executable: "\(.*\)",.*/\1/p' src/sr/*.rs) sm; do
        inside "$driver" --version | grep -qx "$driver $version" || wrong "$driver does not know who it is"
        man -M "$root/usr/share/man" "$driver" < /dev/null 2> "$scratch/said" | grep -q "^$driver(8)" || wrong "man $driver: $(cat "$scratch/said")"
    done
    for unit in sm-collect@fast.timer sm-collect@fast.service; do
        systemd-analyze verify --root="$root" --man=no --recursive-errors=no "$unit" > "$scratch/said" 2>&1 || wrong "$unit: $(cat "$scratch/said")"
        ! grep sm-collect "$scratch/said" || wrong 'systemd complains about the units'
    done
    for file in bash-completion/completions/sm "$1/_sm" fish/vendor_completions.d/sm.fish doc/xcp-storage-managers/{README.md,LICENSE-MIT,LICENSE-APACHE,LICENCES-CRATES,docs/xapi.md}; do
        [ -s "$root/usr/share/$file" ] || wrong "/usr/share/$file is not there"
    done
}

make --no-print-directory deb rpm > "$scratch/made" 2> "$scratch/said" || { cat "$scratch/said"; exit 1; }
deb=$(grep '\.deb$' "$scratch/made") rpm=$(grep -v -- -xapi "$scratch/made" | grep '\.rpm$') xapi=$(grep -- '-xapi.*\.rpm$' "$scratch/made")

# Debian.
fresh debian
before=$(snapshot)
cp "$deb" "$root/tmp/sm.deb"
apt() { inside DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends "$@" < /dev/null > "$scratch/said" 2>&1 || { cat "$scratch/said"; exit 1; }; }
apt install /tmp/sm.deb
works zsh/vendor-completions
apt install --reinstall /tmp/sm.deb
[ -z "$(inside dpkg --verify xcp-storage-managers)" ] || wrong "$(inside dpkg --verify xcp-storage-managers)"
# An administrator's timer goes with a purge, the name of an SR does not.
timer=$root/etc/systemd/system/timers.target.wants/sm-collect@fast.timer
mkdir -p "$root/etc/sm/sr.d"
ln -s /usr/lib/systemd/system/sm-collect@.timer "$timer"
touch "$root/etc/sm/sr.d/fast.conf"
apt remove xcp-storage-managers
apt purge xcp-storage-managers
[ -e "$root/etc/sm/sr.d/fast.conf" ] || wrong 'purge took the name of an SR'
rm -r "$root/etc/sm"
[ ! -L "$timer" ] || wrong 'purge left the timer of an administrator'
diff <(echo "$before") <(snapshot) || wrong 'the Debian package left or took something'

# rpm. The commands of the root are Debian's; `host` stands for the packages that would own them.
fresh redhat
before=$(snapshot)
rpm() { command rpm --root "$root" --define '_dbpath /var/lib/rpm' --define '_pkgverify_level none' "$@"; }
# The same with what it says on standard error in $scratch/said, and shown if it fails.
quiet() { rpm "$@" 2> "$scratch/said" || { cat "$scratch/said"; return 1; }; }
mkdir "$scratch/top"
# package NAME VERSION: an empty package, or one of the files in $scratch/NAME.
package() {
    mkdir -p "$scratch/$1"
    {
        printf 'Name: %s\nVersion: %s\nRelease: 1\nSummary: a stand-in\nLicense: none\nAutoReqProv: no\nBuildArch: noarch\nProvides: /bin/sh\n' "$1" "$2"
        printf '%%description\n%%install\ncp -a %s/. %%{buildroot}\n%%files\n' "$scratch/$1"
        (cd "$scratch/$1" && find . -mindepth 2 -printf '%y /%P\n' | sed 's/^d /%dir /; s/^[^%] //')
    } > "$scratch/$1.spec"
    rpmbuild -bb --quiet --define "_topdir $scratch/top" --define "_rpmdir $scratch/rpms" --define '_rpmfilename %%{NAME}-%%{VERSION}.rpm' "$scratch/$1.spec" \
        > "$scratch/said" 2>&1 || { cat "$scratch/said"; exit 1; }
    rm -r "${scratch:?}/$1"
}
smdir=opt/xensource/sm plugins=etc/xapi.d/plugins
# sm VERSION DRIVER…: a package sm whose drivers are links to Python files, as those of XCP-ng are.
sm() {
    local version=$1 driver
    mkdir -p "$scratch/sm/$smdir" "$scratch/sm/$plugins"
    for driver in "${@:2}"; do
        echo "$driver $version" > "$scratch/sm/$smdir/$driver.py"
        ln -s "$driver.py" "$scratch/sm/$smdir/$driver"
    done
    for driver in tapdisk-pause coalesce-leaf; do
        echo "$driver $version" > "$scratch/sm/$plugins/$driver"
        chmod +x "$scratch/sm/$plugins/$driver"
    done
    package sm "$version"
}
package host 1
sm 3.2.1 FileSR NFSSR EXTSR ISOSR LVMSR
# The next one has a driver less.
sm 3.2.2 FileSR NFSSR EXTSR LVMSR
rpms=$scratch/rpms
# The release of rpm that XCP-ng 8.3 has is 4.11.
! command rpm -qp --requires "$rpm" "$xapi" | grep '^rpmlib' | grep -v 'CompressedFileNames\|FileDigests\|PayloadFilesHavePrefix' || wrong 'the packages want a newer rpm'

rpm -i "$rpms/host-1.rpm" "$rpm"
with=$(snapshot)
works zsh/site-functions
rpm -i --replacepkgs "$rpm"
[ -z "$(rpm -V xcp-storage-managers)" ] || wrong "$(rpm -V xcp-storage-managers)"
diff <(echo "$with") <(snapshot) || wrong 'a second installation changed something'

ours() { (cd "$root/$smdir" 2> /dev/null && find . -lname /usr/sbin/sm -printf '%P\n' | sort | xargs) || true; }
stock() { cat "$root/$smdir/$1.stock" "$root/$plugins/tapdisk-pause.stock" "$root/$plugins/coalesce-leaf.stock" | xargs; }
replaced() { # version
    [ "$(ours)" = 'CephFSSR EXTSR FileSR GlusterFSSR ISOSR LargeBlockSR MooseFSSR NFSSR SMBSR XFSSR' ] || wrong "xapi has only $(ours)"
    [ "$(readlink "$root/$plugins/tapdisk-pause" "$root/$plugins/coalesce-leaf" | uniq)" = /usr/sbin/sm ] || wrong 'xapi has a stock plug-in'
    [ "$(cat "$root/$smdir/LVMSR")" = "LVMSR $1" ] || wrong 'LVMSR was replaced unasked'
    [ "$(stock FileSR)" = "FileSR $1 tapdisk-pause $1 coalesce-leaf $1" ] || wrong "the stock files are $(stock FileSR)"
}
given_back() {
    [ -z "$(ours)" ] || wrong "$(ours) was not given back"
    [ -z "$(rpm -V sm)" ] || wrong "the package sm is not what it was: $(rpm -V sm)"
    [ -z "$(find "$root/$smdir" "$root/$plugins" -name '*.stock*' -o -name '*.new')" ] || wrong 'files of ours are left'
}
rpm -i "$rpms/sm-3.2.1.rpm"
stocked=$(snapshot)
quiet -i "$xapi"
grep -q xe-toolstack-restart "$scratch/said"
replaced 3.2.1
inside /$smdir/FileSR --version | grep -qx "FileSR $version"
for plugin in tapdisk-pause coalesce-leaf; do
    inside "/$plugins/$plugin" 2>&1 | grep -q methodResponse || wrong "the plug-in $plugin does not answer"
done
python3 -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).getinfo("__main__.py")' "$root/usr/sbin/sm"
quiet -U --replacepkgs "$xapi"
replaced 3.2.1
# An update of sm, and an older one again; another list of drivers.
quiet -U "$rpms/sm-3.2.2.rpm"
replaced 3.2.2
[ ! -L "$root/$smdir/ISOSR.stock" ] || wrong 'the driver that sm has no more was kept'
quiet -U --oldpackage "$rpms/sm-3.2.1.rpm"
replaced 3.2.1
sed -i 's/^DRIVERS=.*/DRIVERS="FileSR"/' "$root/etc/sm/xapi.conf"
inside /usr/libexec/xcp-storage-managers/xapi-drivers put 2> "$scratch/said"
[ "$(ours)" = FileSR ] || wrong "of FileSR alone xapi has $(ours)"
[ "$(cat "$root/$smdir/NFSSR")" = 'NFSSR 3.2.1' ] || wrong 'NFSSR did not come back'
# An update of ours keeps the list.
RELEASE=2 support/package/rpm/build > "$scratch/made" 2> "$scratch/said" || { cat "$scratch/said"; exit 1; }
mapfile -t newer < "$scratch/made"
quiet -U "${newer[@]}"
[ "$(ours)" = FileSR ] || wrong "after an update xapi has $(ours)"
xapi=${newer[1]}
# A disk in use keeps its driver.
# shellcheck disable=SC2016 # expanded when it runs
printf '#!/bin/sh\necho "pid=1 minor=0 state=0 args=$(cat /tmp/image)"\n' > "$root/usr/sbin/tap-ctl"
chmod +x "$root/usr/sbin/tap-ctl"
echo aio:/dev/loop3 > "$root/tmp/image"
if rpm -e xcp-storage-managers-xapi 2> "$scratch/said"; then wrong 'the driver of a disk in use was removed'; fi
grep -q 'in use' "$scratch/said"
[ "$(ours)" = FileSR ] || wrong 'the driver of a disk in use was given back'
echo vhd:/var/run/sr-mount/x/y.vhd > "$root/tmp/image"
rpm -e xcp-storage-managers-xapi
given_back
if rpm -i "$xapi" 2> "$scratch/said"; then wrong 'the driver of a disk in use was replaced'; fi
grep -q 'in use' "$scratch/said"
given_back
rm "$root/usr/sbin/tap-ctl" "$root/tmp/image"
# The changed list stays, as rpm does it.
rm -r "$root/etc/sm"
diff <(echo "$stocked") <(snapshot) || wrong 'the rpm for xapi left or took something'
# sm goes while ours is there, and comes back.
quiet -i "$xapi"
rpm -e sm
[ -z "$(ours)" ] || wrong 'drivers stay where there is no package sm'
quiet -i "$rpms/sm-3.2.2.rpm"
rpm -e xcp-storage-managers-xapi
given_back
rpm -e xcp-storage-managers sm host
rm -rf "$root/var/lib/rpm"
diff <(echo "$before") <(snapshot) || wrong 'the rpms left or took something'
rm "${newer[@]}"
echo "$(cd "${deb%/*}" && du -h --apparent-size "${deb##*/}" "${rpm##*/}" | awk '{print $2 " (" $1 ")"}' | paste -sd ' '): installed, ran and removed"
