"""The actor that links and unlinks."""

import time

import numpy as np

from chaos.caches import cluster_id
from chaos.ledger import IN_FLIGHT
from chaos.work import LATE_S, LINK_TIMEOUT_S, OK
from llm_datadist import LLMClusterInfo, LLMException

_LINKED = {OK, "LLM_LINK_FAILED", "LLM_TIMEOUT", "LLM_PROCESSING_LINK", "LLM_ALREADY_LINK"}
_UNLINKED = {OK, "LLM_NOTIFY_PROMPT_UNLINK_FAILED"}


class Linker:
    """Links what is not linked, mostly; unlinks now and then."""

    def __init__(self, work, name="linker", unlinks=0.04):
        self.work = work
        self.name = name
        self._chance = work.chance(name)
        self._unlinks = unlinks

    def run(self):
        while not self.work.stopped:
            peer = self._chance.choice(self.work.peers)
            roll = self._chance.random()
            if not self._is_linked(peer):
                self._link(peer)
            elif roll < self._unlinks:
                self._unlink(peer, force=roll < self._unlinks / 2)
            self.work.pause(self._chance.uniform(0.01, 0.1))

    def _is_linked(self, peer):
        try:
            self.work.instance.describe_link(cluster_id(peer))
        except LLMException:
            return False
        return True

    def _link(self, peer):
        ledger = self.work.ledger
        through_proxy = self._chance.random() < 0.5
        port = int(ledger.proxy[peer] if through_proxy else ledger.port[peer])
        if not port or not int(ledger.port[peer]):
            return
        info = self._info(peer)
        info.append_remote_ip_info("127.0.0.1", port)
        ledger.linked_at[self.work.slot, peer] = IN_FLIGHT
        self._change(peer, "link", _LINKED, self.work.instance.link_clusters, info)
        ledger.linked_at[self.work.slot, peer] = time.monotonic_ns()

    def _unlink(self, peer, *, force):
        def unlink(infos, timeout_ms):
            return self.work.instance.unlink_clusters(infos, timeout_ms, force=force)

        ledger, slot = self.work.ledger, self.work.slot
        operation = "unlink by force" if force else "unlink"
        begun = time.monotonic_ns()
        status = self._change(peer, operation, _UNLINKED, unlink, self._info(peer))
        if status == OK and not force:
            ledger.unlink_begun[slot, peer] = begun
            ledger.unlink_over[slot, peer] = time.monotonic_ns()

    def _change(self, peer, operation, allowed, function, info):
        ledger, slot = self.work.ledger, self.work.slot
        ledger.linking[slot, peer] += np.uint64(1)
        bound_s = LINK_TIMEOUT_S + LATE_S

        def change():
            return function([info], int(LINK_TIMEOUT_S * 1000))[1][0].name

        answer = self.work.call(self.name, operation, bound_s, change, peer=peer)
        ledger.linking[slot, peer] += np.uint64(1)
        status = answer.value if answer.ok else answer.status
        self.work.journal.count(f"{operation}: {status}")
        if status not in allowed:
            self.work.journal.violation(
                "wrong status", call=operation, peer=peer, status=status, text=answer.text
            )
        return status

    @staticmethod
    def _info(peer):
        info = LLMClusterInfo()
        info.append_local_ip_info("127.0.0.1", 0)
        info.remote_cluster_id = cluster_id(peer)
        return info
