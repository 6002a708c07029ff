#!/bin/bash
# sm plan, apply and layout remove on volume groups: what is made, adopted, refused and kept, and what a kill leaves.
# guest: uml
# bins: sm LVMSR
# memory: 768
# takes: 150
# tools: lvcreate strace python3
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
modprobe -a dm_mod loop sd_mod
modprobe scsi_debug dev_size_mb=32 num_tgts=1 max_luns=1 add_host=12 per_host_store=1
OTHER=7e57ab1e-0000-4000-8000-0000000000fe
CLAIMS=/var/lib/sm/registry/claims.json
JOURNAL=/var/lib/sm/layouts/rack1.journal
hostname node1
HOST=node1
MODEL=$SCRATCH/rack1.model
sm() { "$BIN/sm" "$@"; }
mkdir -p /etc/sm
echo min_size=8M > /etc/sm/sm.conf
for n in {1..100}; do [ -b /dev/sdl ] && break; sleep 0.1; done

state() { sm devices --format table -o dev,state | awk -v dev="$1" '$1 == dev { print $2 }'; }
owner() { sm devices --format table -o dev,owner | sed -n "s|^$1  *||p"; }
identity() { sm devices --format table -o dev,identity | awk -v dev="$1" '$1 == dev { print $2 }'; }
# model LINE…
model() { printf '%s\n' 'layout: rack1' "$@" > "$MODEL"; }
apply() { sm apply -m "$MODEL" --yes "$@"; }
# uuid NAME: of the SR with this name
uuid() { sed -n 's/^UUID=//p' "/etc/sm/sr.d/$1.conf"; }
empty() { sm plan -m "$MODEL" --detailed-exitcode > "$SCRATCH/plan" || { cat "$SCRATCH/plan"; return 1; }; }

applied() {
  model "lvm: host=$HOST dev=/dev/sd[abc]" "lvm: host=$HOST dev=/dev/sd[de] span=all"
  [ ! -e $CLAIMS ] && apply --format table && empty && is "$(sm apply -m "$MODEL" --format table)" 'nothing to do' || return
  local dev index=0
  for dev in a b c d e; do
    is "$(state /dev/sd$dev)" claimed && is "$(owner /dev/sd$dev)" "rack1 lvm/$index, SR $(uuid rack1-lvm-$index)" || return
    case $dev in d) ;; *) index=$((index + 1)) ;; esac
  done
  [ "$(vgs --noheadings -o tags "VG_XenStorage-$(uuid rack1-lvm-1)" | grep -c 'xcp.slot=.*/lvm/1')" = 1 ] &&
    is "$(vgs --noheadings -o pv_count "VG_XenStorage-$(uuid rack1-lvm-3)" | tr -d ' ')" 2 && is "$(state /dev/sdf)" free && [ ! -e $JOURNAL ]
}
claim 'a model makes an SR of each medium that fits, and the second plan is empty' applied

used() {
  sm vdi_create rack1-lvm-0 "$(vdi 1)" 8M --label web && local dev && dev=$(sm vdi_attach rack1-lvm-0/web) && echo data > "$dev" &&
    is "$(head -c 4 "$dev")" data && fails_with EVDIBUSY sm layout remove rack1 --yes && [ ! -e $JOURNAL ] && sm vdi_detach rack1-lvm-0/web
}
claim 'the SRs are used by their names, and a layout is not removed under an attached disk' used

taken() {
  local before
  mkdir -p /dev/disk/by-id && ln -sf ../../sda /dev/disk/by-id/wwn-0xabc
  before=$(sha256sum < /dev/sda)
  fails_with EBUSY sm sr_create -t lvm -d /dev/disk/by-id/wwn-0xabc --force $OTHER && is "$(sha256sum < /dev/sda)" "$before" &&
    fails_with EBUSY sm devices release /dev/sda
}
claim 'a disk of the layout is refused under another name, and nothing is written' taken

rebuilt() {
  local before
  before=$(sm devices --format json)
  rm $CLAIMS
  is "$(state /dev/sdb)" adoptable && sm devices rebuild --format table && is "$(sm devices --format json)" "$before" &&
    is "$(sm devices rebuild --format table)" 'nothing to change' && empty
}
claim 'claims that are lost are made anew from the media and the installed layout' rebuilt

foreign() {
  local before
  sm sr_create -t lvm -d /dev/sdf $OTHER && before=$(sha256sum < /dev/sdf) &&
    model "lvm: host=$HOST dev=/dev/sdf index=0" "lvm: host=$HOST dev=/dev/sd[bc]" "lvm: host=$HOST dev=/dev/sd[de] span=all" || return
  # Another medium, with an SR of somebody else, then free.
  fails_with ENOMATCH sm apply -m "$MODEL" --yes && is "$(sha256sum < /dev/sdf)" "$before" && sm sr_delete -t lvm -d /dev/sdf $OTHER &&
    before=$(sha256sum < /dev/sdf) && fails_with ENODEV sm apply -m "$MODEL" --yes && is "$(sha256sum < /dev/sdf)" "$before" && [ ! -e $JOURNAL ]
}
claim 'a slot is not moved to a disk without its mark, and that disk stays as it is' foreign

renamed() {
  # The plan names the disk by a link that leads elsewhere by the time it is carried out.
  ln -sf ../../sdf /dev/disk/by-id/wwn-0xdef
  model "lvm: host=$HOST dev=/dev/sd[abc]" "lvm: host=$HOST dev=/dev/sd[de] span=all" "lvm: host=$HOST dev=/dev/disk/by-id/wwn-0xdef"
  sm plan -m "$MODEL" -o "$SCRATCH/plan.json" || return
  ln -sf ../../sdg /dev/disk/by-id/wwn-0xdef
  local before
  before=$(sha256sum < /dev/sdg)
  fails_with ESTALEPLAN sm apply "$SCRATCH/plan.json" --yes && is "$(sha256sum < /dev/sdg)" "$before" && is "$(state /dev/sdf)" free || return
  ln -sf ../../sdf /dev/disk/by-id/wwn-0xdef
  sm apply "$SCRATCH/plan.json" --yes && is "$(owner /dev/sdf)" "rack1 lvm/4, SR $(uuid rack1-lvm-4)" && fails_with ESTALEPLAN sm apply "$SCRATCH/plan.json" --yes
}
claim 'a device that is not the planned medium any more is refused' renamed

stale() {
  model "lvm: host=$HOST dev=/dev/sd[abc]" "lvm: host=$HOST dev=/dev/sd[de] span=all" "lvm: host=$HOST dev=/dev/disk/by-id/wwn-0xdef" "lvm: host=$HOST dev=/dev/sdg|/dev/loop1"
  sm plan -m "$MODEL" -o "$SCRATCH/plan.json" || return
  # No line fits the first; one fits the second.
  truncate -s 20M "$SCRATCH/disk" && losetup /dev/loop0 "$SCRATCH/disk" && sm apply "$SCRATCH/plan.json" --dry-run && losetup -d /dev/loop0 &&
    losetup /dev/loop1 "$SCRATCH/disk" || return
  fails_with ESTALEPLAN sm apply "$SCRATCH/plan.json" --yes && grep -q 'devices of this host have changed' "$SCRATCH/stderr" && is "$(state /dev/sdg)" free &&
    losetup -d /dev/loop1 || return
  sm devices claim /dev/sdh && sm devices release /dev/sdh &&
    fails_with ESTALEPLAN sm apply "$SCRATCH/plan.json" --yes && grep -q 'claims have changed' "$SCRATCH/stderr" && is "$(state /dev/sdg)" free
}
claim 'a plan is refused after a disk came that a line fits, or the claims changed' stale

removed() {
  local first last before
  model "lvm: host=$HOST dev=/dev/sd[abc]" "lvm: host=$HOST dev=/dev/sd[de] span=all" "lvm: host=$HOST dev=/dev/disk/by-id/wwn-0xdef"
  first=$(uuid rack1-lvm-0) last=$(uuid rack1-lvm-4)
  before=$(sha256sum /dev/sd[abcdef])
  sm layout remove rack1 --yes --format table | grep -q "sm sr_delete --yes -t lvm -d '((device . \"/dev/sda\"))' $first" || return
  is "$(sha256sum /dev/sd[abcdef])" "$before" && is "$(state /dev/sda)" adoptable && is "$(owner /dev/sda)" 'rack1 lvm/0' &&
    is "$(ls /etc/sm/sr.d)" '' && is "$(sm layout list --format table)" '' && is "$(sm devices rebuild --format table)" 'nothing to change' || return
  apply > "$SCRATCH/said" && is "$(uuid rack1-lvm-0)" "$first" && is "$(uuid rack1-lvm-4)" "$last" && grep -q 'take SR' "$SCRATCH/said" && empty || return
  local dev
  dev=$(sm vdi_attach rack1-lvm-0/web) && is "$(head -c 4 "$dev")" data && sm vdi_detach rack1-lvm-0/web
}
claim 'a removed layout keeps the data, and takes its SRs again when it is applied' removed

tuned() {
  local ra=(/sys/block/sd[abc]/queue/read_ahead_kb) other=/sys/block/sdl/queue/read_ahead_kb before
  before=$(cat $other)
  printf '%s\n' 'alias ra=/sys/block/sd[abc]/queue/read_ahead_kb' 'alias dirty=/proc/sys/vm/dirty_ratio' '"512" ra lvm' '"64" ra nfs' \
    '"37" dirty node1' '"36" dirty node2' > /etc/sm/tuning.conf
  sm tune -n --format table | grep -q 'sda/.*512.*due' && ! grep -q 512 "${ra[@]}" && sm tune --format table && is "$(cat "${ra[@]}" | sort -u)" 512 &&
    is "$(cat $other)" "$before" && is "$(cat /proc/sys/vm/dirty_ratio)" 37 && ! sm tune --format table | grep -q written || return
  # A refusal of the kernel keeps nothing else from being written, and a run brings the settings back.
  echo '"no number" dirty file' >> /etc/sm/tuning.conf
  sed -i 's/"37" dirty node1/"999" dirty node1/; s/"512"/"256"/' /etc/sm/tuning.conf
  ! sm tune > "$SCRATCH/said" 2> "$SCRATCH/stderr" && grep -q '^EIO: .*dirty_ratio.*refuses' "$SCRATCH/stderr" && is "$(cat "${ra[@]}" | sort -u)" 256 || return
  sed -i 's/"999"/"20"/' /etc/sm/tuning.conf
  model "lvm: host=$HOST dev=/dev/sd[abc]" "lvm: host=$HOST dev=/dev/sd[de] span=all" "lvm: host=$HOST dev=/dev/disk/by-id/wwn-0xdef" "lvm: host=$HOST dev=/dev/sdg"
  apply > /dev/null && is "$(cat /proc/sys/vm/dirty_ratio)" 20 && rm /etc/sm/tuning.conf && is "$(sm tune --format table)" 'nothing to tune'
}
claim 'settings of the kernel go with the classes of the SRs, and with the host' tuned

wiped() {
  local dev
  sm layout remove rack1 --yes --allow wipe || return
  for dev in a b c d e f g; do is "$(state /dev/sd$dev)" free || return; done
}
claim 'a layout is removed with its data if that is allowed' wiped

# size: MiB that the first SR has
size() {
  local group
  group=VG_XenStorage-$(uuid rack1-lvm-0)
  lvs --noheadings --units m --nosuffix -o lv_size "$group/POOL" 2> /dev/null || vgs --noheadings --units m --nosuffix -o vg_size "$group"
}
grown() {
  local before after
  truncate -s 40M "$SCRATCH/small" "$SCRATCH/thin" && losetup /dev/loop1 "$SCRATCH/small" && losetup /dev/loop2 "$SCRATCH/thin" || return
  model "lvm_format: allocation=$1" "lvm: host=$HOST dev=/dev/loop[12]"
  apply > /dev/null && sm vdi_create rack1-lvm-0 "$(vdi 1)" 8M || return
  before=$(size)
  truncate -s 80M "$SCRATCH/small" "$SCRATCH/thin" && losetup -c /dev/loop1 && losetup -c /dev/loop2 && apply --format table > "$SCRATCH/said" || return
  grep -q 'let SR .* grow from 40MiB' "$SCRATCH/said" || { cat "$SCRATCH/said"; return 1; }
  after=$(size)
  echo "from $before to $after"
  [ $((${after%.*} - ${before%.*})) -ge 36 ] && empty && sm vdi_create rack1-lvm-0 "$(vdi 2)" 40M && sm vdi_get_params rack1-lvm-0 "$(vdi 1)" > /dev/null || return
  # A medium that became smaller is refused.
  sm sr_detach rack1-lvm-0 && sm sr_detach rack1-lvm-1 && losetup -d /dev/loop2 && truncate -s 60M "$SCRATCH/thin" && losetup /dev/loop2 "$SCRATCH/thin" &&
    fails_with EFROZEN sm apply -m "$MODEL" --yes && truncate -s 80M "$SCRATCH/thin" && losetup -c /dev/loop2 && empty || return
  sm layout remove rack1 --yes --allow wipe && losetup -d /dev/loop1 && losetup -d /dev/loop2
}
claim 'an SR grows with its medium' grown thick
claim 'a thin SR grows with its medium' grown thin

# facts: all that a run leaves, without times
facts() {
  vgs --noheadings -o vg_name,tags,pv_name 2> /dev/null | sort
  sm devices --format table -o dev,state,owner
  head -n 100 /etc/sm/sr.d/* 2> /dev/null
  cat /var/lib/sm/layouts/* 2> /dev/null || true
}
LAYOUT=6ba7b810-9dad-11d1-80b4-00c04fd430c8
slots=1
[ ! "${LONG:-}" ] || slots=3
# kills CALL COMMAND…: the command is killed at such calls on the journal, and goes on; the end is that of a run without a kill.
# It takes each third of the calls, others every day, and with LONG=y all.
kills() {
  local call=$1 n status found=0 first=1 step=1
  shift
  [ "${LONG:-}" ] || step=3 first=$(($(today 3) + 1))
  for ((n = first; n <= 60; n += step)); do
    [ "$1" = apply ] || apply > /dev/null || return
    status=0
    # The journal is replaced when a run begins, so its descriptors are followed by name.
    strace -qq -P $JOURNAL -e trace="$call" -e inject="$call:signal=KILL:when=$n" -o "$SCRATCH/trace" "$BIN/sm" "$@" > /dev/null || status=$?
    [ $status != 0 ] || break
    found=$((found + 1))
    if [ ! -e $JOURNAL ] || ! sm apply --resume --yes > /dev/null || [ -e $JOURNAL ]; then echo "$call $n: no end"; return 1; fi
    is "$(facts)" "$want" || { echo "$call $n"; return 1; }
    [ "$1" != apply ] || sm layout remove rack1 --yes --allow wipe > /dev/null || return
  done
  echo "$found kills"
  # The run that was not killed tells how many calls there are.
  [ $found -ge 1 ] && [ "$(grep -c "^$call(" "$SCRATCH/trace")" -ge 4 ]
}
killed() {
  local dev want
  dev=$(printf '%s' abc | head -c $slots)
  rm -f $CLAIMS
  model "uuid: $LAYOUT" "lvm: host=$HOST dev=/dev/sd[$dev]"
  apply > /dev/null && want=$(facts) && sm layout remove rack1 --yes --allow wipe > /dev/null || return
  kills write apply -m "$MODEL" --yes && sm layout remove rack1 --yes --allow wipe > /dev/null && kills fdatasync apply -m "$MODEL" --yes || return
  sm layout remove rack1 --yes --allow wipe > /dev/null && want=$(facts) || return
  kills write layout remove rack1 --yes --allow wipe
}
claim 'a run that is killed at a record of its journal goes on to the same end' killed
summary
