#!/bin/bash
# sm target: disks published by iSCSI and as SCSI disks of the host, with real initiators; kills at every step; a reboot's loss.
# guest: uml
# bins: sm LVMSR
# memory: 768
# disks: 200M
# takes: 110
# tools: iscsiadm iscsid lvcreate mkfs.ext4 strace
# Names have no blanks; a command before && fails only where the claim has failed.
# shellcheck disable=SC2015,SC2086,SC2231,SC2012
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
# shellcheck source-path=SCRIPTDIR source=target.inc
. "$ROOT/tests/guest/target.inc"
modprobe -a loop fuse dm_mod sd_mod iscsi_tcp
mkdir -p /srv/sr0 /srv/fs
# Initiators tell disks by their first 25 digits.
RAW=1a11866e-b035-4b1a-a571-000000000001 VHD=2a11866e-b035-4b1a-a571-000000000002 LVM=3a11866e-b035-4b1a-a571-000000000003
truncate -s 1G /srv/fs.img && mkfs.ext4 -q /srv/fs.img && mount -o loop /srv/fs.img /srv/fs
sm sr_create --name fast -t file -d /srv/fs/sr "$SR" || exit 1
sm vdi_create fast "$RAW" 32M --type raw --label raw
sm vdi_create fast "$VHD" 32M --label vhd
sm sr_create --name vg -t lvm -d "$DISKS" 7e57ab1e-0000-4000-8000-0000000000fe || exit 1
sm vdi_create vg "$LVM" 32M --label lv
VDIS="fast/raw fast/vhd vg/lv"
umask 077
printf 'userid=host1\npassword=secret-of-host1\nmutual_userid=target\nmutual_password=secret-of-store\n' > /root/auth
umask 022

# Nothing of ours is left in the kernel, in the records, on the disks.
nothing_left() {
  local left
  left=$(ls -d $C/core/*_*/ $C/iscsi/iqn*/ $C/loopback/naa*/ /var/lib/sm/targets/* /var/lock/sm/targets/* 2> /dev/null)
  is "$left" '' || return
  for vdi in fast/raw fast/vhd vg/lv; do
    sm vdi_get_params $vdi | grep -q '(VBDs).*(attached . #f)' || { sm vdi_get_params $vdi; return 1; }
  done
}
# A claim that failed leaves the next one a clean host.
clean() {
  local name
  umount /mnt/t 2> /dev/null
  iscsiadm -m session -u > /dev/null 2>&1
  for name in fast/raw fast/vhd vg/lv; do
    sm target unpublish $name --force; sm vdi_detach $name
  done > /dev/null 2>&1
}
proves() { # TEXT FUNCTION
  local before=$FAILED
  claim "$1" "$2"
  [ $FAILED = $before ] || clean
}
fabric_loopback() {
  local disk
  for vdi in fast/raw fast/vhd vg/lv; do
    disk=$(sm target publish $vdi --fabric loopback) || return
    is "$(sm target publish $vdi --fabric loopback)" "$disk" || return
    mkfs.ext4 -q "$disk" && mkdir -p /mnt/t && mount "$disk" /mnt/t && echo "$vdi" > /mnt/t/file || return
    fails_with EVDIBUSY sm target unpublish $vdi || return
    grep -q 'the mount on /mnt/t' "$SCRATCH/stderr" || return
    umount /mnt/t
    sm target unpublish $vdi && [ ! -e "$disk" ] || return
    disk=$(sm vdi_attach $vdi) && mount -o ro "$disk" /mnt/t && is "$(cat /mnt/t/file)" $vdi || return
    umount /mnt/t
    sm vdi_detach $vdi || return
  done
  nothing_left
}
proves 'raw, VHD and LVM disks as SCSI disks of the host' fabric_loopback

in_use() {
  local disk verb
  disk=$(sm target publish fast/vhd --fabric loopback --format table) || return
  for verb in vdi_delete vdi_detach vdi_clone; do fails_with EVDIBUSY sm $verb fast/vhd || return; done
  fails_with EVDIBUSY sm vdi_detach fast/vhd && grep -q 'the SCSI target, as its object iblock_0/' "$SCRATCH/stderr" || return
  fails_with EPERM sm vdi_resize fast/vhd 16M --allow-shrink || return
  sm vdi_get_params fast/vhd | grep -q '(VBDs "target:' || return
  sm vdi_snapshot fast/vhd "$(vdi 9)" --label before || return
  sm vdi_resize fast/vhd 48M || return
  is "$(blockdev --getsize64 "$disk")" $((48 << 20)) || return
  fails_with EEXIST sm target publish fast/vhd --to $ME --portal 127.0.0.1 --no-auth || return
  sm target unpublish fast/vhd && sm target unpublish fast/vhd && sm vdi_delete --yes fast "$(vdi 9)" || return
  nothing_left
}
proves 'a published disk is in use for every other command, can be snapshot and grown' in_use

scsi_of() { # VDI: the disk that the initiator has
  local n
  for n in {1..100}; do
    for disk in /sys/block/sd*; do
      grep -aq "$1" "$disk/device/vpd_pg80" 2> /dev/null && echo "/dev/${disk##*/}" && return
    done
    sleep 0.1
  done
  return 1
}
three() {
  local vdi name disk
  for name in fast/raw fast/vhd vg/lv; do
    sm target publish $name --to $ME --portal 127.0.0.1 --auth /root/auth > "$SCRATCH/said" || { cat "$SCRATCH/said"; return 1; }
  done
  initiator $ME "${CHAP[@]}"
  for vdi in "$RAW" "$VHD" "$LVM"; do
    login "$vdi" && disk=$(scsi_of "$vdi") || { echo "no disk of $vdi"; return 1; }
    echo "written to $vdi" | dd of="$disk" bs=4k seek=100 conv=fsync,sync status=none || return
    if [ "$vdi" = "$LVM" ]; then sm vdi_resize vg/lv 48M; else sm vdi_resize "fast/$vdi" 48M; fi || return
    iscsiadm -m session --rescan > /dev/null && is "$(blockdev --getsize64 "$disk")" $((48 << 20)) || return
    sm target list --format table | grep -q "$vdi.*(logged in)" || return
  done
  fails_with EVDIBUSY sm target unpublish fast/raw && grep -q "$ME, who are logged in" "$SCRATCH/stderr" || return
  for vdi in "$RAW" "$VHD" "$LVM"; do logout "$vdi"; done
  sm target unpublish fast/raw && sm target unpublish fast/vhd && sm target unpublish vg/lv || return
  nothing_left || return
  for name in fast/raw:$RAW fast/vhd:$VHD vg/lv:$LVM; do
    disk=$(sm vdi_attach "${name%:*}") || return
    is "$(dd if="$disk" bs=4k skip=100 count=1 status=none | head -c 47)" "written to ${name#*:}" || return
    sm vdi_detach "${name%:*}"
  done
}
proves 'three disks at one initiator with CHAP both ways: serials, and what was written is found' three

strangers() {
  local secret
  sm target publish fast/raw --to $ME --portal 127.0.0.1 --auth /root/auth > /dev/null || return
  secret=$(grep -rl secret-of-host1 /var/lib/sm/targets | xargs stat -c %a)
  is "$secret" 600 || return
  ! grep -rq secret-of- /var/lib/sm/targets/*.json || return
  initiator $ME
  ! login "$RAW" 2> /dev/null || { echo 'without a secret'; return 1; }
  initiator $ME "${CHAP[@]}" node.session.auth.password=wrong-wrong-wrong
  ! login "$RAW" 2> /dev/null || { echo 'with a wrong secret'; return 1; }
  initiator $OTHER "${CHAP[@]}"
  ! login "$RAW" 2> /dev/null || { echo 'under another name'; return 1; }
  ! iscsiadm -m discovery -t st -p 127.0.0.1 2> /dev/null | grep -q "$RAW" || { echo 'discovered by a stranger'; return 1; }
  fails_with EVDIBUSY sm target publish fast/raw --to $OTHER --auth /root/auth || return
  sm target unpublish fast/raw
}
proves 'no secret, a wrong one, another name: no login, no discovery' strangers

read_only() {
  local disk
  sm target publish fast/raw --to $ME --portal 127.0.0.1 --no-auth --read-only > /dev/null || return
  sm target publish fast/raw --to $OTHER --no-auth --read-only > /dev/null || return
  fails_with EEXIST sm target publish fast/raw --to $OTHER --no-auth || return
  initiator $OTHER
  login "$RAW" && disk=$(scsi_of "$RAW") || return
  is "$(blockdev --getro "$disk")" 1 || return
  ! dd if=/dev/zero of="$disk" bs=4k count=1 oflag=direct status=none 2> /dev/null || return
  sm target unpublish fast/raw --to $ME && sm target show fast/raw --format table | grep -q "$OTHER (read-only) (logged in)" || return
  logout "$RAW"
  sm target unpublish fast/raw --to $OTHER
  nothing_left
}
proves 'readers share a disk, and cannot write' read_only

forced() {
  local disk
  sm target publish fast/raw --to $ME --portal 127.0.0.1 --no-auth > /dev/null || return
  initiator $ME
  login "$RAW" && disk=$(scsi_of "$RAW") || return
  dd if=/dev/urandom of="$disk" bs=1M count=8 oflag=direct status=none
  sm target unpublish fast/raw --force || return
  # A reader gets an error, and never zeroes.
  ! dd if="$disk" of=/dev/null bs=1M count=8 iflag=direct status=none 2> /dev/null || return
  iscsiadm -m session -u > /dev/null 2>&1
  iscsiadm -m node -o delete > /dev/null 2>&1
  nothing_left
}
proves 'a reader that is cut off gets an error' forced

reboots() {
  local before
  sm target publish fast/vhd --to $ME --portal 127.0.0.1 --auth /root/auth > /dev/null &&
    sm target publish vg/lv --fabric loopback > /dev/null && sm target check || return
  tree > "$SCRATCH/before"
  forget
  sm target check 2>&1 | grep -q EDRIFT || return
  sm target restore && sm target check || return
  tree > "$SCRATCH/after"
  diff "$SCRATCH/before" "$SCRATCH/after" || return
  sm target restore || return
  tree > "$SCRATCH/after"
  diff "$SCRATCH/before" "$SCRATCH/after" || return
  # One that fails keeps no other from coming back.
  forget
  mv /srv/fs/sr /srv/fs/away
  ! sm target restore > "$SCRATCH/said" 2>&1 || return
  grep -q "$VHD" "$SCRATCH/said" && sm target list --format table | grep -q "$LVM.*published" || { cat "$SCRATCH/said"; return 1; }
  mv /srv/fs/away /srv/fs/sr
  sm target restore && sm target check && sm target unpublish fast/vhd && sm target unpublish vg/lv && nothing_left
}
proves 'a reboot: restore makes the same tree, and a missing SR keeps no other disk away' reboots

settings() {
  sm target publish fast/raw --to $ME --portal 127.0.0.1 --auth /root/auth > /dev/null || return
  fails_with EINVAL sm target attr fast/raw ../../../iblock_0 || return
  fails_with EINVAL sm target attr fast/raw alua_support/../block_size 4096 || return
  fails_with EINVAL sm target attr fast/raw emulate_3pc maybe || return
  fails_with EACCES sm target attr fast/raw hw_block_size 4096 || return
  fails_with EACCES sm target param fast/raw AuthMethod None || return
  fails_with EINVAL sm target param fast/raw MaxBurstLength '1
2' || return
  sm target attr fast/raw emulate_3pc 0 && sm target param fast/raw MaxBurstLength 65536 && is "$(sm target attr fast/raw emulate_3pc --format table)" 0 || return
  sm target attr fast/raw --format table | grep -q '^hw_block_size *512 *no' || { sm target attr fast/raw --format table; return 1; }
  sed 's/secret-of-host1/other-of-host1/' < /root/auth > /root/auth2 && chmod 600 /root/auth2
  sm target auth fast/raw --to $ME --auth /root/auth2 || return
  fails_with EINVAL sm target auth fast/raw --to $OTHER --auth /root/auth2 || return
  forget
  sm target restore && sm target check && is "$(sm target attr fast/raw emulate_3pc --format table)" 0 && is "$(sm target param fast/raw MaxBurstLength --format table)" 65536 || return
  initiator $ME "${CHAP[@]}"
  ! login "$RAW" 2> /dev/null || { echo 'the old secret is good yet'; return 1; }
  initiator $ME "${CHAP[@]}" node.session.auth.password=other-of-host1
  login "$RAW" && scsi_of "$RAW" || return
  logout "$RAW"
  sm target unpublish fast/raw && fails_with EINVAL sm target attr fast/raw || return
  sm target publish fast/raw --fabric loopback > /dev/null && fails_with EPERM sm target param fast/raw || return
  sm target unpublish fast/raw && nothing_left
}
proves 'attributes, parameters and secrets are changed, checked, and come back' settings

foreign() {
  mkdir -p $C/core/iblock_0/theirs $C/loopback/naa.5001405000000001/tpgt_1
  local before
  before=$(tree)
  sm target publish fast/raw --fabric loopback > /dev/null && sm target restore && sm target unpublish fast/raw || return
  is "$(tree)" "$before" || return
  rmdir $C/loopback/naa.5001405000000001/tpgt_1 $C/loopback/naa.5001405000000001 $C/core/iblock_0/theirs $C/core/iblock_0
  nothing_left
}
proves 'objects of others stay as they are' foreign

refused() {
  local clash=1a11866e-b035-4b1a-a571-0000000000ff
  fails_with EINVAL sm target publish fast/raw --to host1 --portal 127.0.0.1 --no-auth || return
  fails_with EINVAL sm target publish fast/raw --to $ME --portal 192.0.2.1 --no-auth || return
  fails_with EINVAL sm target publish fast/raw --to $ME --no-auth || return
  fails_with EINVAL sm target publish fast/raw --to $ME --portal 127.0.0.1 || return
  fails_with ENOVDI sm target publish fast/nobody --fabric loopback || return
  # This kernel has no NVMe target.
  fails_with ENOLIO sm target publish fast/raw --fabric nvme-tcp --to nqn.2014-08.org.example:a --portal 127.0.0.1 --no-auth || return
  grep -q 'no module nvmet' "$SCRATCH/stderr" || return
  fails_with ENOSR sm target publish nowhere/raw --fabric loopback || return
  chmod 644 /root/auth
  fails_with EINVAL sm target publish fast/raw --to $ME --portal 127.0.0.1 --auth /root/auth || return
  chmod 600 /root/auth
  sm vdi_attach fast/raw > /dev/null && fails_with EVDIBUSY sm target publish fast/raw --fabric loopback && sm vdi_detach fast/raw || return
  sm vdi_lock fast/raw FALSE somebody && fails_with ENOLCK sm target publish fast/raw --fabric loopback && sm vdi_unlock fast/raw FALSE somebody || return
  nothing_left || return
  # Its first 25 digits are those of $RAW.
  sm vdi_create fast $clash 1M --type raw && sm target publish fast/raw --fabric loopback > /dev/null || return
  fails_with EWWNCLASH sm target publish fast/$clash --fabric loopback || return
  sm target unpublish fast/raw && sm vdi_delete --yes fast $clash && nothing_left
}
proves 'what is refused changes nothing' refused

kills() {
  local call n=0 killed=0 points=0 args=(fast/raw --to "$ME" --portal 127.0.0.1 --auth /root/auth)
  for call in mkdir symlink write renameat unlink rmdir openat; do
    n=0
    while :; do
      n=$((n + ${EVERY[$call]:-1}))
      killed=0
      strace -f -qq -o /dev/null -e "inject=$call:signal=KILL:when=$n" "$BIN/sm" target publish "${args[@]}" > /dev/null 2>&1 || killed=$?
      [ $killed = 137 ] || break
      points=$((points + 1))
      # The three ways on, in turns.
      case $((points % 3)) in
      0) sm target restore --format table || { echo "restore after kill at $call $n"; return 1; } ;;
      1) sm target publish "${args[@]}" > /dev/null || { echo "publish after kill at $call $n"; return 1; } ;;
      esac
      sm target unpublish fast/raw && nothing_left || { echo "after kill at $call $n"; return 1; }
    done
    sm target unpublish fast/raw || return
    n=0
    while :; do
      n=$((n + ${EVERY[$call]:-1}))
      sm target publish "${args[@]}" > /dev/null || return
      killed=0
      strace -f -qq -o /dev/null -e "inject=$call:signal=KILL:when=$n" "$BIN/sm" target unpublish fast/raw > /dev/null 2>&1 || killed=$?
      [ $killed = 137 ] || break
      points=$((points + 1))
      if [ $((points % 2)) = 0 ]; then
        sm target restore --format table || { echo "restore after kill at $call $n of unpublish"; return 1; }
        # What had not begun to go is there; what had is gone.
        sm target check --format table || return
      fi
      sm target unpublish fast/raw && nothing_left || { echo "after kill at $call $n of unpublish"; return 1; }
    done
    sm target unpublish fast/raw || return
  done
  echo "$points kills"
  [ $points -gt 40 ]
}
declare -A EVERY=([openat]=16 [write]=2)
[ -z "${LONG:-}" ] || EVERY=()
# The records came back from a backup, or were damaged: the kernel's objects and the locks are there all the same.
lost_records() {
  local name way
  for way in gone damaged; do
    for name in fast/raw fast/vhd vg/lv; do
      case $name in
      fast/vhd) sm target publish $name --fabric loopback ;;
      *) sm target publish $name --to $ME --portal 127.0.0.1 --auth /root/auth ;;
      esac > /dev/null || return
    done
    for name in /var/lib/sm/targets/*.json; do
      case $way in gone) rm "$name" ;; damaged) : > "$name" ;; esac
    done
    sm target check > "$SCRATCH/check" 2>&1; is $? 116 && grep -q 'no record' "$SCRATCH/check" || { cat "$SCRATCH/check"; return 1; }
    initiator $ME "${CHAP[@]}"
    iscsiadm -m node -o new -T "$(basename $C/iscsi/iqn*$RAW)" -p 127.0.0.1:3260 > /dev/null && iscsiadm -m node -T "$(basename $C/iscsi/iqn*$RAW)" -p 127.0.0.1:3260 --login > /dev/null || return
    case $way in
    gone) fails_with EVDIBUSY sm target unpublish fast/raw || return ;;
    damaged) fails_with EIO sm target unpublish fast/raw && grep -q 'unpublish --force ends' "$SCRATCH/stderr" || return ;;
    esac
    sm target unpublish fast/raw --force || return
    iscsiadm -m session -u > /dev/null 2>&1
    if [ $way = gone ]; then sm target unpublish fast/vhd && sm target unpublish vg/lv; else sm target unpublish fast/vhd --force && sm target unpublish vg/lv --force; fi || return
    nothing_left || { echo "records $way"; return 1; }
  done
  # After a reboot the locks alone are left.
  sm target publish fast/raw --to $ME --portal 127.0.0.1 --auth /root/auth > /dev/null && forget && rm /var/lib/sm/targets/* || return
  fails_with EVDIBUSY sm vdi_delete --yes fast/raw || return
  sm target unpublish fast/raw && nothing_left
}
proves 'publications whose records are lost or damaged are ended by unpublish' lost_records

proves 'kills in publish and unpublish: restore, or the next call, goes on, and nothing is left' kills

ten() {
  local n pids=() failed=0
  for n in {10..19}; do sm vdi_create fast "${n}000000-0000-4000-8000-000000000000" 1M --type raw || return; done
  for n in {10..19}; do sm target publish "fast/${n}000000-0000-4000-8000-000000000000" --fabric loopback > /dev/null & pids+=($!); done
  for n in "${pids[@]}"; do wait "$n" || failed=1; done
  [ $failed = 0 ] && is "$(ls -d $C/core/iblock_*/*0000-4000* | sed 's|/[^/]*$||' | sort -u | wc -l)" 10 && sm target check || return
  for n in {10..19}; do sm target unpublish "fast/${n}000000-0000-4000-8000-000000000000" && sm vdi_delete --yes fast "${n}000000-0000-4000-8000-000000000000" || return; done
  nothing_left
}
proves 'ten publications at the same time' ten
summary
