# shellcheck shell=bash
# Sourced by test1.sh: many at once.

given_disks b 15

many=8
[ -z "$QUICK" ] || many=4

claim 'of many that create one VDI at once, one does, and the others hear EEXIST'
together $many vdi_create $SR "$D" 4
is "$WON $CODES" '1 EEXIST'
gone "$D"

claim 'many that create a VDI each at once all do'
together $many vdi_create $SR "7e57ab1e-0000-4000-8000-00000000010@" 4
is "$WON" $many
must sr_get_params $SR
has_words VDIs $((many + 2))

claim 'many that delete them at once, listing meanwhile, all do'
together $many vdi_delete $SR "7e57ab1e-0000-4000-8000-00000000010@"
is "$WON" $many
must sr_get_params $SR
shows VDIs "$A $B"

claim 'of many that lock one VDI at once, one does, and it is the holder'
together $many vdi_lock $SR "$A" FALSE user-@
is "$WON $CODES" '1 ENOLCK'
must vdi_get_params $SR "$A"
has_words VBDs 1
must vdi_unlock $SR "$A" TRUE suite

claim 'of many that break a lock at once, one is the holder in the end'
must vdi_lock $SR "$A" FALSE first
together $many vdi_lock $SR "$A" TRUE user-@
true_that [ "$WON" -ge 1 ]
must vdi_get_params $SR "$A"
has_words VBDs 1
true_that [ "$FIELD" != first ]
must vdi_unlock $SR "$A" TRUE suite

claim 'of many that attach one VDI at once, all get the same device'
needs_root
together $many vdi_attach $SR "$A"
is "$WON" $many
true_that [ "$(cat "$SCRATCH"/out.[0-9] | sort -u | wc -l)" = 1 ]
IFS= read -r DEV <"$SCRATCH/out.1"
true_that has "$DEV" b 15
together $many vdi_detach $SR "$A"
is "$WON" $many
must vdi_get_params $SR "$A"
shows attached '#f'

claim 'of many that clone to one UUID at once, one does'
may_refuse vdi_clone && skip "the driver does not support vdi_clone (EPERM)"
together 4 vdi_clone $SR "$B" "$D"
is "$WON $CODES" '1 EEXIST'
gone "$D"

claim 'stress: create, resize, lock, clone, snapshot, delete, round and round, and the list is right each time'
rounds=6
[ -z "$QUICK" ] || rounds=1
for ((round = 1; round <= rounds; round++)); do
    list=''
    for i in 1 2 3 4; do create "$(vdi 20$i)" $((4 * i)) && list+=" $(vdi 20$i)"; done
    must vdi_resize $SR "$(vdi 201)" $((16 + round))
    must vdi_lock $SR "$(vdi 202)" FALSE stress
    may_refuse vdi_clone || { must vdi_clone $SR "$(vdi 203)" "$(vdi 301)" && list+=" $(vdi 301)"; }
    may_refuse vdi_snapshot || { must vdi_snapshot $SR "$(vdi 204)" "$(vdi 302)" && list+=" $(vdi 302)"; }
    must sr_scan $SR
    shows VDIs "$A $B$list"
    vdi_in_scan "$(vdi 201)"
    of_size $((16 + round)) "$FOUND"
    must vdi_unlock $SR "$(vdi 202)" FALSE stress
    for uuid in $list; do gone "$uuid"; done
    must sr_get_params $SR
    shows VDIs "$A $B"
done

claim 'stress: many calls of many kinds at once on one SR lose nothing and tear nothing'
rounds=3 many=6
if [ -n "$QUICK" ]; then rounds=1 many=4; fi
for ((round = 1; round <= rounds; round++)); do
    together $many vdi_create $SR "7e57ab1e-0000-4000-8000-00000000040@" 4
    is "$WON" $many
    pids=()
    for ((i = 1; i <= many; i++)); do
        uuid=$(vdi 40$i)
        {
            "$SM" vdi_resize -t "$TYPE" -d "$DCONF" $SR "$uuid" 8 &&
                "$SM" sr_scan -t "$TYPE" -d "$DCONF" $SR | grep -q "$uuid" &&
                "$SM" vdi_lock -t "$TYPE" -d "$DCONF" $SR "$uuid" FALSE u &&
                "$SM" vdi_unlock -t "$TYPE" -d "$DCONF" $SR "$uuid" FALSE u &&
                "$SM" vdi_delete -t "$TYPE" -d "$DCONF" $SR "$uuid"
        } >"$SCRATCH/mixed.$i" 2>&1 &
        pids+=($!)
    done
    for ((i = 1; i <= many; i++)); do wait "${pids[i - 1]}" || fail "call $i: $(cat "$SCRATCH/mixed.$i")"; done
    must sr_get_params $SR
    shows VDIs "$A $B"
done
