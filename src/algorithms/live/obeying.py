"""What somebody wants of algorithms, obeyed: claimed, stopped, killed, released."""

from __future__ import annotations

import logging

from algorithms.live.crew import Crew, Phase
from algorithms.live.hosting import Hosted
from algorithms.live.records import Desired, Life, Record

log = logging.getLogger("algorithms.live")


class Obeying(Crew):
    """The part of a runner that looks what is wanted."""

    def _look(self) -> None:
        """Claim what is free, and obey what was said of what runs."""
        assert self._lease is not None
        for claim in self._lease.claim(self._names_free(), brokers=tuple(self._couriers)):
            hosted = Hosted(claim, self._factory, self.policy)
            self._hosted[hosted.id] = hosted
            self._wanted[hosted.id] = claim.record
            self._changed = True
            log.info("%s: claimed", hosted.name)
            if self._names is None and claim.record.desired is Desired.STOPPED:
                self._leave(hosted, claim.record.reason)
        self._switch = self._journal.switch()
        names = [hosted.name for hosted in self._hosted.values()]
        found = {record.id: record for record in self._journal.records(names)} if names else {}
        for hosted in list(self._hosted.values()):
            record = found.get(hosted.id)
            if record is None or record.epoch != hosted.claim.record.epoch:
                log.error("%s belongs to another process now", hosted.name)
                self._drop([hosted])
                continue
            self._obey(hosted, record)

    def _names_free(self) -> list[str] | None:
        if self._names is None:
            return None
        mine = {hosted.name for hosted in self._hosted.values()}
        # Those that were stopped from elsewhere stay so, until somebody wants them again.
        stopped = {r.name for r in self._wanted.values() if r.desired is Desired.STOPPED} - mine
        for record in self._journal.records(sorted(stopped)) if stopped else ():
            if record.desired is not Desired.STOPPED:
                self._wanted[record.id] = record
                stopped.discard(record.name)
        return [name for name in self._names if name not in mine and name not in stopped]

    def _obey(self, hosted: Hosted, record: Record) -> None:
        before, self._wanted[hosted.id] = self._wanted[hosted.id], record
        changed = before.changed_at != record.changed_at
        if self._care.leaves(hosted):
            if record.desired is Desired.STOPPED:
                return
            self._care.end(hosted)
            hosted.course.revive()
        # One that has stopped already was not given back for want of the database.
        if record.desired is Desired.STOPPED and (changed or hosted.course.life is Life.STOPPED):
            self._stop_one(hosted, record.reason)
            return
        killed = record.desired is Desired.KILLED
        if killed or self._switch.active:
            reason = record.reason if killed else self._switch.reason
            flatten = (killed and record.flatten) or (self._switch.active and self._switch.flatten)
            if hosted.kill(reason, flatten):
                log.warning("%s: killed%s", hosted.name, f": {reason}" if reason else "")
                self._poked.add(hosted)
                if hosted.course.life is Life.ERROR and flatten:
                    self._care.begin(hosted, reason or "killed", leave=False, flatten=True)
        elif hosted.release():
            log.warning("%s: released", hosted.name)
            self._poked.add(hosted)
        # What a broker has of a broken one is closed without it.
        cared = killed and hosted.venue in self._couriers
        if changed and hosted.course.life is Life.ERROR and not cared:
            log.info("%s: begun again by hand", hosted.name)
            self._care.end(hosted)
            hosted.course.revive()

    def _stop_one(self, hosted: Hosted, reason: str) -> None:
        log.info("%s: stopped%s", hosted.name, f": {reason}" if reason else "")
        if hosted in self._supervisor.busy:
            self._wanted[hosted.id] = hosted.claim.record  # looked at again
            return
        if hosted.engine is not None and hosted.course.life is not Life.STOPPED:
            self._call({hosted: hosted.stop}, Phase.STOP)
        self._leave(hosted, reason)
