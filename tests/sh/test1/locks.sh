# shellcheck shell=bash
# Sourced by test1.sh: locks.

given_disks

claim 'vdi_lock locks, and vdi_get_params names the holder'
must vdi_lock $SR "$A" FALSE host1/vm7
prints ''
must vdi_get_params $SR "$A"
shows lock 1
shows VBDs host1/vm7
must sr_scan $SR
vdi_in_scan "$A"
shows VBDs host1/vm7 "$FOUND"

claim 'a second vdi_lock fails with ENOLCK and names the holder, whoever asks'
fails_with ENOLCK vdi_lock $SR "$A" FALSE host2/vm8
says host1/vm7
fails_with ENOLCK vdi_lock $SR "$A" FALSE host1/vm7

claim 'vdi_delete, vdi_clone and sr_delete of a locked VDI fail with EVDIBUSY'
fails_with EVDIBUSY vdi_delete $SR "$A"
says host1/vm7
fails_with EVDIBUSY sr_delete $SR --yes
must vdi_get_params $SR "$A"
fails_with EVDIBUSY vdi_clone $SR "$A" "$C"

claim 'vdi_unlock by another user fails with ENOLCK'
fails_with ENOLCK vdi_unlock $SR "$A" FALSE host2/vm8
must vdi_get_params $SR "$A"
shows VBDs host1/vm7

claim 'vdi_lock with FORCE takes the lock from its holder'
must vdi_lock $SR "$A" TRUE host2/vm8
must vdi_get_params $SR "$A"
shows VBDs host2/vm8
fails_with ENOLCK vdi_unlock $SR "$A" FALSE host1/vm7

claim 'the lock survives sr_detach and sr_attach'
must sr_detach $SR
must sr_attach $SR
must vdi_get_params $SR "$A"
shows VBDs host2/vm8

claim 'vdi_unlock gives the lock back, once'
must vdi_unlock $SR "$A" FALSE host2/vm8
prints ''
must vdi_get_params $SR "$A"
shows lock 0
shows VBDs ''
fails_with ENOLCK vdi_unlock $SR "$A" FALSE host2/vm8

claim 'vdi_unlock with FORCE takes the lock from whoever has it'
must vdi_lock $SR "$A" FALSE host1/vm7
must vdi_unlock $SR "$A" TRUE host3/vm9
must vdi_get_params $SR "$A"
shows lock 0

claim 'vdi_lock and vdi_unlock of a VDI that does not exist fail with ENOVDI'
fails_with ENOVDI vdi_lock $SR "$NONE" FALSE u
fails_with ENOVDI vdi_unlock $SR "$NONE" FALSE u

claim 'a shareable VDI is locked by several users, once each'
create "$C" 4 --shareable
must vdi_lock $SR "$C" FALSE u1
must vdi_lock $SR "$C" FALSE u2
fails_with ENOLCK vdi_lock $SR "$C" FALSE u2
must vdi_get_params $SR "$C"
shows shareable '#t'
shows VBDs 'u1 u2'
must vdi_unlock $SR "$C" FALSE u1
must vdi_get_params $SR "$C"
shows VBDs u2
must vdi_unlock $SR "$C" FALSE u2
gone "$C"

claim 'a lock dies with its VDI: the UUID used again is not locked'
create "$C" 4
must vdi_lock $SR "$C" FALSE u1
must vdi_unlock $SR "$C" FALSE u1
gone "$C"
create "$C" 4
must vdi_get_params $SR "$C"
shows lock 0
gone "$C"
