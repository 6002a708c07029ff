#!/bin/bash
# What `make install` installs works from where it is, and `make uninstall` takes it away.
set -euo pipefail
cd "$(dirname "$0")/../.."

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
plugin=$root/etc/xapi.d/plugins/tapdisk-pause
mkdir -p "${plugin%/*}"
echo 'the stock plug-in' > "$plugin"
make --no-print-directory install DESTDIR="$root" PREFIX=/usr SMDIR=/opt/xensource/sm PLUGINDIR=/etc/xapi.d/plugins > /dev/null

# shellcheck disable=SC2013 # names without blanks
for driver in $(sed -n 's/.*executable: "\(.*\)",.*/\1/p' src/sr/*.rs); do
    "$root/usr/sbin/$driver" --version | grep -q "^$driver " || { echo "$driver does not know who it is"; exit 1; }
    [ "$(readlink "$root/opt/xensource/sm/$driver")" = /usr/sbin/sm ]
done
# A second time the stock plug-in stays what it is; an update of it becomes the one that is kept.
for stock in 'the stock plug-in' 'a newer one'; do
    support/install-plugin "${plugin%/*}" /usr/sbin/sm
    [ "$(readlink "$plugin")" = /usr/sbin/sm ]
    [ "$(cat "$plugin.stock")" = "$stock" ] || { echo "the stock plug-in was not kept"; exit 1; }
    rm "$plugin"
    echo 'a newer one' > "$plugin"
done
[ -s "$root/usr/share/man/man8/sm.8" ]

make --no-print-directory uninstall DESTDIR="$root" PREFIX=/usr > /dev/null
left=$(find "$root/usr" ! -type d)
[ -z "$left" ] || { echo "uninstall left $left"; exit 1; }
echo "installed, ran and uninstalled sm and $(find "$root/opt/xensource/sm" -type l | wc -l) drivers"
