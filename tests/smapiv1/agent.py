"""xapi's side of a conversation with one SR: the members it sends, and what it checks afterwards."""

import uuid

from driver import Driver, Fault

__all__ = ["Agent", "Driver", "Fault"]


class Agent:
    def __init__(self, xapi, driver, device_config, sr_uuid=None, sr_type="file", master=True):
        self.xapi, self.driver = xapi, driver
        self.sr_uuid = sr_uuid or str(uuid.uuid4())
        self.sr_ref = xapi.add_sr(self.sr_uuid, sr_type)
        self.device_config = dict(device_config, SRmaster="true" if master else "false")

    def common(self, command, args):
        return {"host_ref": self.xapi.host_ref, "command": command, "args": args,
                "device_config": self.device_config, "session_ref": self.xapi.session, "sr_ref": self.sr_ref,
                "sr_uuid": self.sr_uuid, "subtask_of": "OpaqueRef:task"}

    def of_vdi(self, vdi):
        record = self.xapi.vdis[vdi]
        return {"vdi_ref": vdi, "vdi_location": record["location"], "vdi_uuid": record["uuid"],
                "vdi_on_boot": "persist", "vdi_allow_caching": "false"}

    def members(self, command, *args, vdi=None, **more):
        members = self.common(command, list(args))
        if vdi:
            members.update(self.of_vdi(vdi))
        members.update(more)
        return members

    def call(self, command, *args, vdi=None, **more):
        return self.driver.call(command, self.members(command, *args, vdi=vdi, **more))

    def found(self, answer):
        """The record that xapi reads back after the driver answered an identity."""
        assert set(answer) >= {"uuid", "location"} and all(type(v) is str for v in answer.values()), answer
        by_location = [r for r, v in self.xapi.of(self.sr_ref).items() if v["location"] == answer["location"]]
        assert len(by_location) == 1, (answer, self.xapi.of(self.sr_ref))
        assert self.xapi.vdis[by_location[0]]["uuid"] == answer["uuid"]
        return by_location[0]

    # The commands by what xapi does with them.

    def create_sr(self, size="0"):
        self.call("sr_create", size)

    def attach_sr(self):
        self.call("sr_attach")

    def create(self, size, label="a disk", description="", sm_config=None, vdi_type="user", read_only="false", **more):
        args = [str(size), label, description, "", "false", "19700101T00:00:00Z", "", read_only]
        sm_config = {"type": "raw"} if sm_config is None else sm_config
        return self.found(self.call("vdi_create", *args, vdi_type=vdi_type, vdi_sm_config=sm_config, **more))

    def copy(self, command, vdi):
        return self.found(self.call(command, vdi=vdi, driver_params={}))

    def snapshot(self, vdi):
        """What xapi makes of the answer: the record says that it is a snapshot."""
        snapshot = self.copy("vdi_snapshot", vdi)
        self.xapi.vdis[snapshot].update(is_a_snapshot=True, snapshot_of=vdi)
        self.call("vdi_update", vdi=snapshot)
        return snapshot

    def resize(self, vdi, size, command="vdi_resize"):
        assert self.found(self.call(command, str(size), vdi=vdi)) == vdi

    def delete(self, vdi):
        self.call("vdi_delete", vdi=vdi)
        self.xapi.vdis.pop(vdi, None)

    def scan(self):
        """xapi repeats the pair while the set of records changes."""
        for _ in range(10):
            before = set(self.xapi.of(self.sr_ref))
            self.call("sr_scan")
            self.call("sr_update")
            if set(self.xapi.of(self.sr_ref)) == before:
                return
        raise AssertionError("the scan does not converge")
