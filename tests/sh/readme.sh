#!/bin/bash
# The README's session is real: its commands are run, and what they print is what it shows.
# Sizes of this machine's filesystem and numbers of loop devices may differ.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=${BIN:?the directory of the executables}:$PATH

if [ "$(id -u)" != 0 ] || [ ! -e /dev/loop-control ]; then
    echo "SKIP: attaching wants root and loop devices"
    exit 0
fi

scratch=$(mktemp -d "${TMPDIR:-/tmp}/sm-readme.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# shellcheck disable=SC2016 # no expansion is meant
session() { sed -n '/^```console$/,/^```$/p' README.md | grep -v '^```'; }
same() { sed -E -e "s|$scratch/sr0|/srv/sr0|g" -e 's|/dev/loop[0-9]+|/dev/loopN|g' -e 's|^(size +).*|\1N|' -e 's|\(size \. [0-9]+\)|(size . N)|'; }

session | same > "$scratch/shown"
session | sed -n 's/^\$ //p' | while IFS= read -r command; do
    printf '$ %s\n' "$command"
    eval "${command//\/srv\/sr0/$scratch/sr0}" 2>&1 < /dev/null || true
done | same > "$scratch/real"

diff -u "$scratch/shown" "$scratch/real"
echo "$(grep -c '^\$' "$scratch/shown") commands of the README print what it shows"
