#!/bin/bash
# What `make install` installs works from where it is, and `make uninstall` takes it away.
set -euo pipefail
cd "$(dirname "$0")/../.."

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
make --no-print-directory install DESTDIR="$root" PREFIX=/usr SMDIR=/opt/xensource/sm > /dev/null

# shellcheck disable=SC2013 # names without blanks
for driver in $(sed -n 's/.*executable: "\(.*\)",.*/\1/p' src/sr/*.rs); do
    "$root/usr/sbin/$driver" --version | grep -q "^$driver " || { echo "$driver does not know who it is"; exit 1; }
    [ "$(readlink "$root/opt/xensource/sm/$driver")" = /usr/sbin/sm ]
done
[ -s "$root/usr/share/man/man8/sm.8" ]

make --no-print-directory uninstall DESTDIR="$root" PREFIX=/usr > /dev/null
left=$(find "$root/usr" ! -type d)
[ -z "$left" ] || { echo "uninstall left $left"; exit 1; }
echo "installed, ran and uninstalled sm and $(find "$root/opt/xensource/sm" -type l | wc -l) drivers"
