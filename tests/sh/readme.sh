#!/bin/bash
# The sessions of the README and of docs/formats.md are real: their commands are run, and what they print is what they show.
# What this machine's filesystem makes of sizes, numbers of devices, and UUIDs that sm chose may differ.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=${BIN:?the directory of the executables}:$PATH

if [ "$(id -u)" != 0 ] || [ ! -e /dev/loop-control ]; then
    echo "SKIP: attaching wants root and loop devices"
    [ -z "${SM_TESTS_SKIP_NOTHING-}" ]
    exit
fi

scratch=$(mktemp -d "${TMPDIR:-/tmp}/sm-readme.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
# The names that the session gives are none of this host's.
export XCP_SM_RUN_DIR=$scratch/run
mkdir "$XCP_SM_RUN_DIR"

# shellcheck disable=SC2016 # no expansion is meant
session() { sed -n '/^```console$/,/^```$/p' "$1" | grep -v '^```'; }
same() { sed -E -e "s|$scratch/sr0|/srv/sr0|g" -e 's,/dev/(loop|nbd)[0-9]+,/dev/N,g' -e 's/^((size|free) +).*/\1N/' -e 's|\(size \. [0-9]+\)|(size . N)|' \
    -e 's|, [^,]* of [0-9.]+ [KMGT]iB used|, N used|' -e 's/ +[0-9.]+ ?KiB/ N/g' \
    -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}/THEN/g' -e 's/^[0-9a-f-]{36}$/UUID/' \
    -e 's|(physical_utilisation \.) [0-9]+|\1 N|' -e 's|[0-9a-f-]{36} (vhd .* base)$|BASE \1|'; }

# as_shown PAGE: its commands print what it shows. They run in a directory of their own.
as_shown() {
    session "$1" | same > "$scratch/shown"
    session "$1" | sed -n 's/^\$ //p' | while IFS= read -r command; do
        printf '$ %s\n' "$command"
        (cd "$scratch/here" && eval "${command//\/srv\/sr0/$scratch/sr0}") 2>&1 < /dev/null || true
    done | same > "$scratch/real"
    diff -u "$scratch/shown" "$scratch/real"
    commands=$((commands + $(grep -c '^\$' "$scratch/shown")))
}
commands=0
mkdir "$scratch/here"
as_shown README.md

# An image of another program, with data where a wrong offset would show.
head -c 3000000 /dev/urandom > "$scratch/raw"
truncate -s 64M "$scratch/raw"
qemu-img convert -f raw -O vmdk -o subformat=streamOptimized "$scratch/raw" "$scratch/here/vm.vmdk"
as_shown docs/formats.md
(cd "$scratch/here" && qemu-img compare -f vmdk -F raw vm.vmdk "$scratch/raw" && qemu-img compare -f vmdk -F raw copy.vmdk "$scratch/raw") > /dev/null

echo "$commands commands of README.md and docs/formats.md print what they show"
