#!/bin/bash
# LVHD, the groups of XCP-ng and XenServer, as lvhd.py makes them: trees of VHDs and qcow2s in volumes that are as small as they can
# be, raw bases, names in MGT, changes that were begun. All of it is listed and read, also without device-mapper's help, and
# nothing on the disks changes. Then names are changed, and nothing else does.
# guest: uml
# bins: sm
# memory: 512
# disks: 140M 140M
# takes: 60
# tools: lvcreate wipefs dmsetup qemu-img qemu-io strace python3
# UUIDs have no spaces.
# shellcheck disable=SC2086,SC2119
set -u
# shellcheck source-path=SCRIPTDIR source=lvm.inc
. "$ROOT/tests/guest/lvm.inc"
read -r ONE _ <<< "$DISKS"
vdi() { echo "7e57ab1e-0000-4000-8000-0000000000$1"; }
/usr/bin/python3 "$ROOT/tests/guest/lvhd.py" $VG $DISKS > "$SCRATCH/expected" || fail 'lvhd.py'
list_volumes -a $VG
before=$VOLUMES
digest() { cat $DISKS | sha256sum; }
sync
digest=$(digest) seqno=$(vgs --noheadings -o vg_seqno $VG)
# of VERB…: sets OUT to its answer, as JSON
of() { OUT=$(sm "$@" --format json 2> "$SCRATCH/err") || fail "$*: $(cat "$SCRATCH/err")"; }

claim 'the SR is found, and attached without a change'
case $(sm sr_probe 2>&1) in *"$SR"*) ;; *) fail "sr_probe: $(sm sr_probe 2>&1)" ;; esac
must sm sr_attach $SR
DCONF=$ONE must sm sr_attach $SR

claim 'a scan runs no LVM command, and activates nothing'
strace -f -qq -e trace=execve -o "$SCRATCH/trace" "$BIN/sm" sr_scan -t lvm -d "$DCONF" $SR --format json > "$SCRATCH/scan" || fail sr_scan
is "$(grep -c 'execve.*= 0$' "$SCRATCH/trace")" 1 'the programs that a scan runs, itself among them'
mapped
is "$MAPPED" '' 'what is active'

claim 'every disk and base is listed, with its size, format, parent and names'
must sm vdi_tree $SR --format json && cp "$SCRATCH/stdout" "$SCRATCH/tree"
/usr/bin/python3 - "$SCRATCH/scan" "$SCRATCH/tree" "$SCRATCH/expected" << 'END' || fail 'the listing'
import json, sys

def images(part):
    """Every image in a listing, however it is nested."""
    if isinstance(part, dict):
        if "virtual_size" in part and "hidden" in part:
            yield part
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from images(inner)

found = {v["uuid"]: v for v in images(json.load(open(sys.argv[2])))}
every = list(found.values())
listed = {v["uuid"] for v in images(json.load(open(sys.argv[1])))}
wanted = [line.split() for line in open(sys.argv[3])]
bad = []
for vdi, _, size, form, parent, hidden in wanted:
    v = found.pop(vdi, None)
    is_ = v and (v["virtual_size"], v["type"], v["parent"] or "-", v["hidden"], v["state"], vdi in listed)
    if is_ != (int(size), form, parent, hidden == "1", "healthy", hidden == "0"):
        bad.append((vdi, is_))
poisoned = found.pop("7e57ab1e-0000-4000-8000-000000000017", {})
if poisoned.get("state") != "unsupported" or "revert" not in poisoned["reason"]:
    bad.append(poisoned)
names = {v["uuid"][-2:]: (v["label"], v["description"], v["read_only"]) for v in every}
for end, said in (("02", ("web & <db>", "about web & <db>", False)), ("03", ("monday", "about monday", True)),
                  ("04", ("cut within &am", "about cut within &am", False)), ("11", ("being cloned", "about being cloned", False)),
                  ("01", ("base copy", "about base copy", True))):
    if names[end] != said:
        bad.append((end, names[end]))
monday = next(v for v in every if v["label"] == "monday")
if (monday["snapshot_of"][-2:], monday["created"]) != ("02", "2020-01-01T00:00:00Z"):
    bad.append(monday)
print(*bad, *found, sep="\n")
sys.exit(bool(bad or found))
END

claim 'every disk holds what it should, with its parents, also in the middle of a change'
while read -r disk wanted _; do
  sm vdi_export $SR $disk - 2> "$SCRATCH/err" > "$SCRATCH/disk" || fail "vdi_export $disk: $(cat "$SCRATCH/err")"
  is "$(sha256sum < "$SCRATCH/disk" | cut -d' ' -f1)" "$wanted" "the digest of $disk"
done < "$SCRATCH/expected"
mapped
is "$MAPPED" '' 'what is active'
of vdi_get_params $SR web\ \&\ \<db\>
case $OUT in *"\"parent\":\"$(vdi 01)\""*) ;; *) fail "vdi_get_params: $OUT" ;; esac
fails_with EPERM sm vdi_export $SR "$(vdi 17)" - && says 'vhd-util revert'
fails_with ENOVDI sm vdi_get_params $SR "$(vdi 31)" && says 'no VDI'

claim 'disks are attached read-only: the volumes of their chains are active, and counted as the Python drivers count them'
counts() { (cd "/run/sm/refcount/lvm-$SR" 2> /dev/null && grep . -- *) | sed 's/.*\(..:\)/\1/' | tr '\n' ' '; }
attached() { # END: the disk is attached, and holds what it should
  local disk=$1 device
  device=$(sm vdi_attach $SR "$(vdi $disk)" --read-only 2> "$SCRATCH/err") || fail "vdi_attach $disk: $(cat "$SCRATCH/err")"
  is "$(blockdev --getro "$device")" 1 "whether $disk takes writes"
  is "$(sha256sum < "$device" | cut -d' ' -f1)" "$(sed -n "s/^$(vdi $disk) \([0-9a-f]*\).*/\1/p" "$SCRATCH/expected")" "the digest of the device of $disk"
}
attached 02
is "$(counts)" '01:1 0 02:0 1 ' 'the counts'
attached 02
attached 03
is "$(counts)" '01:2 0 02:0 1 03:0 1 ' 'the counts of a base with two'
must sm sr_scan $SR --format json && cp "$SCRATCH/stdout" "$SCRATCH/scan"
is "$(grep -o '"attached":true' "$SCRATCH/scan" | wc -l)" 2 'the disks that a listing shows as attached'
fails_with EVDIBUSY sm sr_detach $SR && says 'this host'
must sm vdi_detach $SR "$(vdi 02)"
is "$(counts)" '01:1 0 03:0 1 ' 'the counts after one is detached'
mapped
is "$(wc -w <<< "$MAPPED")" 2 'how many volumes are active'
must sm vdi_detach $SR "$(vdi 03)"
for disk in 06 08 04; do
  attached $disk
  must sm vdi_detach $SR "$(vdi $disk)"
done
for disk in 10 11 13 14 16; do
  fails_with ESRBUSY sm vdi_attach $SR "$(vdi $disk)" --read-only && says 'a change was begun'
done
mapped
is "$MAPPED" '' 'what is active when all is detached'
is "$(counts; ls /run/sm/refcount)" '' 'the counts when all is detached'
claim 'a killed vdi_attach leaves a count with which the next goes on; a volume that another program has open is refused'
lvchange -qq -ay $VG/VHD-"$(vdi 02)" $VG/VHD-"$(vdi 01)"
mkdir -p "/run/sm/refcount/lvm-$SR"
echo 1 0 > "/run/sm/refcount/lvm-$SR/$(vdi 01)"
echo 0 1 > "/run/sm/refcount/lvm-$SR/$(vdi 02)"
exec 7< /dev/$VG/VHD-"$(vdi 02)"
fails_with EVDIBUSY sm vdi_attach $SR "$(vdi 02)" --read-only && says 'open'
fails_with EVDIBUSY sm vdi_export $SR "$(vdi 02)" - && says 'open'
exec 7<&-
attached 02
is "$(counts)" '01:1 0 02:0 1 ' 'the counts'
must sm vdi_detach $SR "$(vdi 02)"
mapped
is "$MAPPED" '' 'what is active at the end'

claim 'what is not served is refused in one line, and where another host is the master, whatever would change it'
A=$(vdi 02) B=$(vdi 0a)
refused() { # WORDS CALL…: each is refused, and says so
  local phrase=$1 call
  shift
  for call; do
    read -r verb rest <<< "$call"
    fails_with EPERM sm $verb $SR $rest && says "$phrase"
  done
}
for call in vdi_attach "vdi_snapshot $B" "vdi_delete --yes" "vdi_resize 32"; do
  read -r verb rest <<< "$call"
  fails_with EVDIBUSY sm $verb $SR $A $rest && says 'cbtlog'
done
all=$DCONF
DCONF="((device . \"$all\") (SRmaster . \"false\"))"
refused "SRmaster" "sr_collect" "vdi_create $B 8" "vdi_delete $A --yes" "vdi_clone $A $B" "vdi_snapshot $A $B" "vdi_resize $A 32" \
  "sr_delete --yes" "sr_check --repair" "vdi_revert $A $(vdi 03) --yes" "vdi_lock $A FALSE me"
is "$(sm vdi_delete $SR $A --yes 2>&1 | wc -l)" 1 'the lines of a refusal'
DCONF=$all
fails_with EEXIST sm sr_create $SR && says "$SR"

claim 'sr_check says what was begun, and what cannot be used'
status=0
sm sr_check $SR --deep --format table > "$SCRATCH/check" 2> /dev/null || status=$?
is $status 5 'the status of sr_check'
for words in "clone_$(vdi 11)_1 (being cloned): it is being cloned as VDI $(vdi 31)" "VHD-$(vdi 21) (being cloned): it has the data of VDI $(vdi 11)" \
  "leaf_$(vdi 13)_1: it is being merged into its parent $(vdi 23)" "VHD-OLD_$(vdi 14): a change that was begun, or ended, left it" \
  "inflate_$(vdi 10)_8388608" "jvhd_$(vdi 17): the size of its VHD" "zero_$(vdi 15)_4194304" "VHD-$(vdi 17): unsupported" \
  "MGT: it has a record of a VDI without a volume"; do
  grep -qF "$words" "$SCRATCH/check" || fail "sr_check should say '$words': $(cat "$SCRATCH/check")"
done
is "$(grep -c '(cannot be mended)' "$SCRATCH/check")" 1 'lasting faults'

claim 'of a physical volume that is seen twice nothing is read: LVM may have chosen the copy'
must sm vdi_attach $SR "$(vdi 02)" --read-only
modprobe loop
dd if="$ONE" of=/tmp/copy bs=1M status=none
loop=$(losetup -f --show /tmp/copy)
fails_with EBUSY sm vdi_export $SR "$(vdi 03)" - && says 'is seen on'
fails_with EBUSY sm vdi_attach $SR "$(vdi 03)" --read-only && says 'is seen on'
must sm vdi_detach $SR "$(vdi 02)"
losetup -d "$loop"
rm /tmp/copy
mapped
is "$MAPPED" '' 'what is active beside the copy'
attached 03
must sm vdi_detach $SR "$(vdi 03)"

claim 'nothing changed'
must sm sr_detach $SR
sync
list_volumes -a $VG
is "$VOLUMES" "$before" 'the volumes'
is "$(vgs --noheadings -o vg_seqno $VG)" "$seqno" 'the number of changes of the group'
is "$(digest)" "$digest" 'the digest of the disks'

claim 'the names of a disk are changed where the Python drivers keep them, and nothing else is'
names() { # VDI: sets OUT to its label, description, read_only
  of vdi_get_params $SR $1
  OUT=$(/usr/bin/python3 -c 'import json, sys; v = json.loads(sys.argv[1]); print(v["label"], v["description"], v["read_only"], sep="|")' "$OUT")
}
must sm vdi_set $SR $A --label 'new <&> é' --description ''
names $A
is "$OUT" 'new <&> é||False' 'the names that were set'
mgt() { lvchange -qq -ay $VG/MGT && dd if=/dev/$VG/MGT iflag=direct bs=64K status=none > "$SCRATCH/$1" && lvchange -qq -an $VG/MGT; }
mgt first
seqno=$(vgs --noheadings -o vg_seqno $VG)
must sm vdi_set $SR "$(vdi 03)" --label tuesday
must sm vdi_set $SR $A --label 'new <&> é'
names "$(vdi 03)"
is "$OUT" 'tuesday|about monday|True' 'a snapshot with another label'
must sm vdi_set $SR "$(vdi 01)" --label base
for more in --read-only=false --shareable; do
  fails_with EPERM sm vdi_set $SR "$(vdi 03)" --label x $more && says 'vdi_set of more than names'
done
mgt second
is "$(vgs --noheadings -o vg_seqno $VG)" "$seqno" 'the number of changes of the group after names'
/usr/bin/python3 - "$SCRATCH/first" "$SCRATCH/second" "$(vdi 03)" "$(vdi 01)" "$A" << 'END' || fail 'the bytes of MGT'
import sys
first, second = (open(name, "rb").read() for name in sys.argv[1:3])
record = lambda bytes_, n: bytes_[2048 + n * 1024:][:1024]
changed = [n for n in range((len(first) - 2048) // 1024) if record(first, n) != record(second, n)]
texts = [record(second, n).decode() for n in changed]
assert first[:2048] == second[:2048] and len(changed) == 2, (changed, len(first), first[:40], second[:40])
assert all(any(vdi in text for text in texts) for vdi in sys.argv[3:5]), texts
assert first.count(b"<vdi><name_label>new &lt;&amp;&gt; \xc3\xa9</name_label><name_description></name_description>" + b" " * 20) == 1
END

claim 'only the master of the SR changes names, and where xapi is, only xapi'
slave() { "$SCRATCH/LVMSR" "$1" -d "((device . \"$ONE\") (SRmaster . \"${MASTER-false}\"))" "${@:2}"; }
ln -s "$BIN/sm" "$SCRATCH/LVMSR"
fails_with EPERM slave vdi_set $SR $A --label x && says 'SRmaster'
mkdir -p /etc/xensource
echo master > /etc/xensource/pool.conf
fails_with EPERM sm vdi_set $SR $A --label x && says 'use xe'
MASTER=true must slave vdi_set $SR $A --label x
rm /etc/xensource/pool.conf
names $A
is "$OUT" 'x||False' 'the names that the master set'

claim 'the first call that changes the SR ends what was begun, and no disk changes'
must sm vdi_create $SR "$(vdi 0a)" 8
is "$(volumes $VG | tr ' ' '\n' | grep -E '^(clone|leaf|inflate|zero|relink|coalesce|NEW)|OLD')" '' 'the journals that are left'
while read -r disk wanted _; do
  # The raw base that had grown has its zeroes now.
  [ $disk != "$(vdi 15)" ] || continue
  is "$(sm vdi_export $SR $disk - 2> /dev/null | sha256sum | cut -d' ' -f1)" "$wanted" "the digest of $disk after the recovery"
done < "$SCRATCH/expected"
mapped
is "$MAPPED" '' 'what is active'

claim 'what is read while a volume of the chain goes away is not taken for the disk'
mkfifo "$SCRATCH/pipe"
"$BIN/sm" vdi_export -t lvm -d "$DCONF" $SR "$(vdi 02)" - > "$SCRATCH/pipe" 2> "$SCRATCH/err" &
exporter=$!
exec 7< "$SCRATCH/pipe"
head -c 1 <&7 > /dev/null
lvremove -qq -y $VG/VHD-"$(vdi 01)" > /dev/null
cat <&7 > /dev/null
status=0
wait $exporter || status=$?
case $(cat "$SCRATCH/err") in
'ESRBUSY: '*'while it was read'*) ;;
*) fail "an export of what changed: $status $(cat "$SCRATCH/err")" ;;
esac
summary
