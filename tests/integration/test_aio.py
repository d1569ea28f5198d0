"""llm_datadist.aio: nodes, peers, cancellation (an extension)."""

import asyncio
import importlib.util
import threading

import numpy as np
import pytest

from llm_datadist import CacheManager, LLMConfig, LLMDataDist, LLMException, LLMStatusCode
from llm_datadist.aio import Node, cluster_id_of
from support.instances import pattern
from support.setup import ANY_PORT


def tensors(seed, num=4, blocks=16, words=64):
    return [pattern((blocks, words), seed + i).copy() for i in range(num)]


def _loops():
    yield pytest.param(asyncio.new_event_loop, id="asyncio")
    if importlib.util.find_spec("uvloop"):
        import uvloop

        first = uvloop.new_event_loop()  # which makes what all of them share
        first.run_until_complete(asyncio.sleep(0))
        first.close()
        yield pytest.param(uvloop.new_event_loop, id="uvloop")


@pytest.fixture(params=_loops())
def run(request):
    """Run a coroutine with each event loop that is installed."""

    def run(coroutine):
        loop = request.param()
        try:
            return loop.run_until_complete(asyncio.wait_for(coroutine, 60))
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    return run


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "nodes"


def test_a_decode_node_pulls_pushes_and_leases(run, directory):
    async def main():
        source, target = tensors(1), tensors(100)
        async with (
            Node("prefill", ANY_PORT, directory=directory) as prefill,
            Node("decode", directory=directory) as decode,
        ):
            prefill.register("kv", source)
            decode.register("kv", target)
            assert decode.address is None
            peer = await decode.connect("prefill")
            assert (peer.name, peer.cluster_id) == ("prefill", cluster_id_of("prefill"))
            await peer.pull("kv", range(8), np.arange(8, 16))
            assert all((t[8:] == s[:8]).all() for s, t in zip(source, target, strict=True))
            await peer.push("kv", [9], [15], layers=range(1))
            for layer, (s, t) in enumerate(zip(source, target, strict=True)):
                assert (s[15] == t[9]).all() is np.True_ if layer < 2 else (s[15] != t[9]).any()
            async with peer.lease("kv", [3, 4], ttl_ms=60_000) as lease:
                assert lease.active
                assert prefill.leased_blocks("kv") == {3, 4}
            await peer.check()
            assert peer.describe()["cluster_id"] == peer.cluster_id
            await asyncio.gather(*(peer.pull("kv", [i], [i]) for i in range(16)))
            assert all((t == s).all() for s, t in zip(source, target, strict=True))
            await peer.unlink()
            with pytest.raises(LLMException, match="LLM_NOT_YET_LINK"):
                await peer.pull("kv", [0], [0])
        assert directory.read_text().strip() == "{}"

    run(main())


def test_caches_by_name(run):
    async def main():
        async with Node("one", ANY_PORT) as one, Node("two") as two:
            one.register("kv", tensors(1))
            local = two.register("mine", (target := tensors(50)))
            peer = await two.connect(one.address)
            assert "one" not in repr(peer)  # it was named by its address
            await peer.pull("kv", [1], [2], into="mine")
            await peer.pull("kv", [1], [3], into=local)
            assert (target[0][2] == target[0][3]).all()
            await peer.push("kv", [3], [0], source="mine")
            with pytest.raises(KeyError, match=r"no local cache is called 'kv' .*'mine'"):
                await peer.pull("kv", [1], [2])
            with pytest.raises(KeyError, match="a cache 'mine' exists"):
                two.register("mine", tensors(2))
            two.unregister("mine")
            with pytest.raises(KeyError, match="there are: none"):
                two.unregister("mine")
            with pytest.raises(LLMException, match="LLM_KV_CACHE_NOT_EXIST"):
                await peer.pull("kv", [1], [2], into=local)

    run(main())


def test_nodes_may_start_in_any_order(run, directory):
    async def main():
        async with Node("decode", directory=directory) as decode:
            waiting = asyncio.create_task(decode.connect("prefill"))
            await asyncio.sleep(0)
            async with Node("prefill", ANY_PORT, directory=directory):
                peer = await waiting
                assert await decode.connect("prefill", timeout=1) is not peer
                assert len(decode.instance.describe_links()) == 1

    run(main())


def test_a_directory_in_the_memory_of_a_node(run):
    async def main():
        router = Node("router", ANY_PORT, keeps_directory=True)
        where = router.address
        async with (
            Node("prefill", ANY_PORT, directory=where) as prefill,
            Node("decode", directory=where) as decode,
        ):
            prefill.register("kv", tensors(1))
            decode.register("kv", (target := tensors(9)))
            peer = await decode.connect("prefill")
            await peer.pull("kv", [3], [4])
            assert (target[0][4] == tensors(1)[0][3]).all()
            assert (await router.connect("prefill")).cluster_id == peer.cluster_id
            assert (await decode.connect("router")).cluster_id == cluster_id_of("router")
            with pytest.raises(
                LLMException, match="'other' is unknown: it is not in the directory at"
            ):
                await decode.connect("other", timeout=0)
        with pytest.raises(LLMException, match="'prefill' is unknown"):
            await router.connect("prefill", timeout=0)
        async with Node("late", ANY_PORT, directory=where):
            await router.close()  # a node outlives the directory
        with pytest.raises(ValueError, match="exclude each other"):
            Node("router", ANY_PORT, directory=where, keeps_directory=True)

    run(main())


def test_a_node_that_is_not_there(run, directory):
    async def main():
        async with Node("decode", directory=directory) as decode, Node("alone") as alone:
            with pytest.raises(LLMException, match="'prefill' is unknown: it is not in the file"):
                await decode.connect("prefill", timeout=0.05)
            with pytest.raises(LLMException, match="no directory was given") as error:
                await alone.connect("prefill", timeout=0)
            assert error.value.status_code is LLMStatusCode.LLM_LINK_FAILED

    run(main())


def test_an_address_of_another_node_is_refused(run, directory):
    """The cluster id is computed from the name, and the handshake checks it."""

    async def main():
        async with (
            Node("prefill", ANY_PORT, directory=directory),
            Node("decode", directory=directory) as decode,
        ):
            directory.write_text(directory.read_text().replace("prefill", "other"))
            with pytest.raises(LLMException, match=str(cluster_id_of("prefill"))):
                await decode.connect("other", timeout=1.0)
            assert decode.instance.describe_links() == []

    run(main())


def test_what_a_node_announces(directory):
    with pytest.raises(ValueError, match=r"at which no peer can connect; give advertise"):
        Node("a", "0.0.0.0:0", directory=directory)
    config = LLMConfig()
    config.allow_anonymous = True
    node = Node("a", "0.0.0.0:0", directory=directory, advertise="localhost", config=config)
    assert f"localhost:{node.instance.listen_address[1]}" in directory.read_text()
    assert config.listen_ip_info is None
    asyncio.run(node.close())
    asyncio.run(node.close())


def test_a_node_that_cannot_be_announced_leaves_no_instance(directory, monkeypatch):
    ended, finalize = [], LLMDataDist.finalize

    def note_and_finalize(instance):
        ended.append(instance.cluster_id)
        finalize(instance)

    monkeypatch.setattr(LLMDataDist, "finalize", note_and_finalize)
    directory.write_text("[]")
    with pytest.raises(ValueError, match="is no directory of nodes"):
        Node("a", ANY_PORT, directory=directory)
    assert ended == [cluster_id_of("a")]


def test_a_node_without_threads_leaves_no_instance(monkeypatch):
    monkeypatch.setattr(LLMDataDist, "llm_engine_instance", None)
    with pytest.raises(ValueError, match="max_calls"):
        Node("a", ANY_PORT, max_calls=0)
    assert LLMDataDist.llm_engine_instance is None


def test_a_timeout_ends_a_pull_that_is_under_way(run):
    async def main():
        async with Node("one", ANY_PORT) as one, Node("two") as two:
            one.register("kv", tensors(1, 2, 8, 1 << 16))
            two.register("kv", tensors(9, 2, 8, 1 << 16))
            peer = await two.connect(one.address)
            waiting = asyncio.create_task(peer.pull("kv", range(8), range(8)))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await peer.pull("kv", range(8), range(8))

    run(main())


@pytest.mark.expects_log("node a stays in the file .* is no directory of nodes")
def test_a_node_is_closed_also_if_the_directory_is_lost(run, directory):
    async def main():
        node = Node("a", ANY_PORT, directory=directory)
        directory.write_text("[]")
        await node.close()
        with pytest.raises(RuntimeError, match="not initialized"):
            node.instance.describe_links()
        with pytest.raises(RuntimeError, match="node 'a' is closed"):
            await node.connect("b")
        await node.close()

    run(main())


def test_two_caches_of_one_name_are_not_registered_at_the_same_time(monkeypatch):
    registering, may_end = threading.Event(), threading.Event()
    register = CacheManager.register_tensors

    def register_slowly(*arguments, **options):
        registering.set()
        may_end.wait(10)
        return register(*arguments, **options)

    node = Node("a")
    monkeypatch.setattr(CacheManager, "register_tensors", register_slowly)
    first = threading.Thread(target=node.register, args=("kv", tensors(1)))
    first.start()
    assert registering.wait(10)
    second = asyncio.to_thread(node.register, "kv", tensors(2))

    async def main():
        waiting = asyncio.create_task(second)
        await asyncio.wait([waiting], timeout=0.05)
        may_end.set()
        with pytest.raises(KeyError, match="a cache 'kv' exists"):
            await waiting
        await node.close()

    asyncio.run(main())
    first.join(10)


def test_a_canceled_connect_does_not_end_the_link_of_another_one(run, monkeypatch):
    dialed, may_end = threading.Event(), threading.Event()
    dial = Node._dial

    def dial_slowly(node, peer, timeout_ms):
        cluster_id = dial(node, peer, timeout_ms)
        if not dialed.is_set():
            dialed.set()
            may_end.wait(10)
        return cluster_id

    async def main():
        async with Node("one", ANY_PORT) as one, Node("two") as two:
            monkeypatch.setattr(Node, "_dial", dial_slowly)
            first = asyncio.create_task(two.connect(one.address))
            assert await asyncio.to_thread(dialed.wait, 10)
            second = asyncio.create_task(two.connect(one.address))
            await asyncio.wait([second], timeout=0.1)
            first.cancel()
            await asyncio.sleep(0)
            may_end.set()
            with pytest.raises(asyncio.CancelledError):
                await first
            await (await second).check()

    run(main())


@pytest.mark.parametrize("linked", [False, True])
def test_a_canceled_connect_leaves_only_links_that_were_there(run, monkeypatch, linked):
    dialed, may_end = threading.Event(), threading.Event()
    dial = Node._dial

    def dial_slowly(node, peer, timeout_ms):
        cluster_id = dial(node, peer, timeout_ms)
        dialed.set()
        may_end.wait(10)
        return cluster_id

    async def main():
        async with Node("one", ANY_PORT) as one, Node("two") as two:
            if linked:
                await two.connect(one.address)
            monkeypatch.setattr(Node, "_dial", dial_slowly)
            waiting = asyncio.create_task(two.connect(one.address))
            assert await asyncio.to_thread(dialed.wait, 10)
            waiting.cancel()
            await asyncio.sleep(0)
            may_end.set()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert len(two.instance.describe_links()) == linked

    run(main())
