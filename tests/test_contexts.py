"""Contexts and settings of a handle in threads, asyncio tasks and generators: each gets what it asked for."""

import asyncio
import contextlib
import contextvars
import gc
import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import randomise, tiny_model

import headedit
from headedit import HeadEditError

NAMES = [None, "default", "a", "b"]
PASSES = int(os.environ.get("HEADEDIT_THREADED_PASSES", "800"))


@pytest.fixture
def edits(llama):
    """Three adapters with different values, in eval mode."""
    found = headedit.attach(llama)
    randomise(found)
    for seed, name in enumerate(["a", "b"], 1):
        found.add_adapter(name)
        found.set_adapter(name)
        randomise(found, seed)
    found.set_adapter("default")
    return found


@torch.no_grad()
def logits(edits, ids):
    return edits.model(input_ids=ids).logits


def of_adapters(edits, ids):
    """The logits with each adapter, and those of the base model by None."""
    found = {}
    for name in NAMES[1:]:
        edits.set_adapter(name)
        found[name] = logits(edits, ids)
    edits.set_adapter("default")
    with edits.disable_adapter():
        found[None] = logits(edits, ids)
    assert len({values.sum().item() for values in found.values()}) == len(NAMES)
    return found


@pytest.fixture
def often():
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(work, count):
    """Runs work(number) in threads that start together, and raises the first error of any."""
    barrier = threading.Barrier(count)

    def run(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@pytest.mark.usefixtures("often")
def test_eight_threads_with_different_routes_all_get_their_own_rows(edits, ids):
    right = {}
    for one in NAMES:
        for other in NAMES:
            with edits.route([one, other]):
                right[one, other] = logits(edits, ids)

    def work(number):
        draw, wrong = random.Random(number), 0
        for _ in range(PASSES // 8):
            rows = draw.choice(NAMES), draw.choice(NAMES)
            with edits.route(list(rows)):
                wrong += not torch.equal(logits(edits, ids), right[rows])
        return wrong

    before = logits(edits, ids)
    assert in_threads(work, 8) == [0] * 8
    assert torch.equal(logits(edits, ids), before)


@pytest.mark.usefixtures("often")
def test_threads_that_disable_dial_and_do_neither_do_not_meet(edits, ids):
    right = of_adapters(edits, ids)
    edits.strength = 0.25
    quarter = logits(edits, ids)
    edits.strength = 1.0
    contexts = [
        (contextlib.nullcontext, right["default"]),
        (edits.disable_adapter, right[None]),
        (lambda: edits.at_strength(0.25), quarter),
    ]

    def work(number):
        wrong = 0
        for _ in range(30):
            context, wanted = contexts[number % 3]
            with context():
                wrong += not torch.equal(logits(edits, ids), wanted)
        return wrong

    assert in_threads(work, 6) == [0] * 6


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("setting", ["adapter", "strength", "head", "harden"])
def test_what_is_set_while_others_infer_is_in_a_pass_as_a_whole_or_not_at_all(setting, edits, ids):
    """The other threads' answers are those before or after a setting, never a mixture."""
    right = of_adapters(edits, ids)
    snapshot = edits.snapshot()
    ways = {
        "adapter": (lambda: edits.set_adapter("a"), lambda: edits.set_adapter("default")),
        "strength": (lambda: setattr(edits, "strength", 0.5), lambda: setattr(edits, "strength", 1.0)),
        "head": (lambda: edits.set_head(0, 1, scale=-2.0), lambda: edits.restore(snapshot)),
        "harden": (lambda: (setattr(edits, "strength", 1.0), edits.harden()), lambda: edits.restore(snapshot)),
    }
    there, back = ways[setting]
    there()
    other = logits(edits, ids)
    back()
    assert torch.equal(logits(edits, ids), right["default"])
    if setting != "harden":
        assert not torch.equal(other, right["default"])
    stop = threading.Event()

    def work(number):
        if number == 0:
            for _ in range(60):
                there()
                back()
            stop.set()
            return 0
        wrong = 0
        while not stop.is_set():
            got = logits(edits, ids)
            wrong += not (torch.equal(got, right["default"]) or torch.equal(got, other))
        return wrong

    assert in_threads(work, 3) == [0] * 3


def test_overlapping_asyncio_tasks_get_their_own_and_leave_the_model_as_it_was(edits, ids):
    right = of_adapters(edits, ids)

    async def task(context, wanted, seconds):
        with context:
            for _ in range(3):
                await asyncio.sleep(seconds)
                assert torch.equal(logits(edits, ids), wanted)
        await asyncio.sleep(seconds)
        assert torch.equal(logits(edits, ids), right["default"])

    async def all_at_once():
        await asyncio.gather(
            task(edits.disable_adapter(), right[None], 0.003),
            task(edits.route(["a", "a"]), right["a"], 0.007),
            task(edits.route(["b", "b"]), right["b"], 0.001),
            task(contextlib.nullcontext(), right["default"], 0.002),
        )

    with edits.route(["default", "default"]):
        routed = logits(edits, ids)
    torch.testing.assert_close(routed, right["default"])
    for name in ["a", "b"]:
        with edits.route([name, name]):
            right[name] = logits(edits, ids)
    asyncio.run(all_at_once())
    assert torch.equal(logits(edits, ids), right["default"])


def test_a_task_and_a_worker_thread_started_inside_a_context_keep_it(edits, ids):
    right = of_adapters(edits, ids)

    async def started_inside():
        with edits.disable_adapter():
            inherited = asyncio.create_task(asyncio.to_thread(logits, edits, ids))
        return await inherited

    assert torch.equal(asyncio.run(started_inside()), right[None])
    with edits.disable_adapter():
        context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(context.run, logits, edits, ids).result(), right[None])
        assert torch.equal(pool.submit(logits, edits, ids).result(), right["default"])


def held(context):
    with context:
        yield


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_paused_generators_can_be_closed_in_any_order(order, edits, ids):
    right = of_adapters(edits, ids)
    generators = [held(edits.route(["a", "a"])), held(edits.route(["b", "b"])), held(edits.disable_adapter())]
    for generator in generators:
        next(generator)
    open_ones = [0, 1, 2]
    for number in order:
        generators[number].close()
        open_ones.remove(number)
        wanted = None if 2 in open_ones else "b" if 1 in open_ones else "a" if 0 in open_ones else "default"
        torch.testing.assert_close(logits(edits, ids), right[wanted])
    assert torch.equal(logits(edits, ids), right["default"])


def test_a_generator_that_is_closed_in_another_thread_ends_its_context(edits, ids):
    right = of_adapters(edits, ids)
    generator = held(edits.disable_adapter())
    next(generator)
    assert torch.equal(logits(edits, ids), right[None])
    thread = threading.Thread(target=generator.close)
    thread.start()
    thread.join()
    assert torch.equal(logits(edits, ids), right["default"])
    with edits.disable_adapter():
        assert torch.equal(logits(edits, ids), right[None])
    assert torch.equal(logits(edits, ids), right["default"])


def test_a_context_that_ends_in_an_error_is_left(edits, ids):
    right = of_adapters(edits, ids)
    with pytest.raises(ZeroDivisionError), edits.route(["a", "b"]), edits.at_strength(0.5), edits.disable_adapter():
        1 / 0  # noqa: B018
    assert torch.equal(logits(edits, ids), right["default"])
    assert not edits.disabled
    edits.merge_adapter()  # nothing is thought to be in a context


def test_an_interrupted_pass_leaves_nothing_to_the_next_one(edits, ids):
    right = of_adapters(edits, ids)

    def interrupt(module, args):
        raise KeyboardInterrupt

    handle = edits.model.model.layers[1].mlp.register_forward_pre_hook(interrupt)
    with edits.disable_adapter(), pytest.raises(KeyboardInterrupt):
        logits(edits, ids)
    handle.remove()
    assert torch.equal(logits(edits, ids), right["default"])


def test_the_strength_of_a_context_is_that_of_the_adapter_that_was_active(edits, ids):
    edits.strength = 0.5
    half = logits(edits, ids)
    edits.strength = 1.0
    right = of_adapters(edits, ids)
    with edits.at_strength(0.5):
        assert torch.equal(logits(edits, ids), half)
        assert edits.strength == 1.0
        with edits.at_strength(0.0):
            torch.testing.assert_close(logits(edits, ids), right[None])
        edits.set_adapter("a")
        assert torch.equal(logits(edits, ids), right["a"])
        edits.set_adapter("default")
    assert torch.equal(logits(edits, ids), right["default"])


def test_rows_that_are_routed_within_another_strength_have_it(edits, ids):
    right = of_adapters(edits, ids)
    edits.strength = 0.5
    half = logits(edits, ids)
    edits.strength = 1.0
    with edits.at_strength(0.25), edits.at_strength(0.5), edits.route(["default", "a"]):
        found = logits(edits, ids)
    torch.testing.assert_close(found, torch.stack([half[0], right["a"][1]]))
    with edits.route(["default", "a"]):
        torch.testing.assert_close(logits(edits, ids), torch.stack([right["default"][0], right["a"][1]]))


def test_disabling_wins_over_whatever_is_asked_for_within(edits, ids):
    base = of_adapters(edits, ids)[None]
    with edits.disable_adapter(), edits.route(["a", "b"]):
        assert torch.equal(logits(edits, ids), base)
    with edits.route(["a", "b"]), edits.disable_adapter():
        assert torch.equal(logits(edits, ids), base)


def test_merging_is_refused_while_another_thread_is_in_a_context(edits, ids):
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with edits.disable_adapter():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait(20)
    with pytest.raises(HeadEditError, match=r"Inside disable_adapter\(\) in another thread or task.*cannot be merged"):
        edits.merge_adapter()
    leave.set()
    thread.join()
    edits.merge_adapter()


def test_the_base_model_of_merged_edits_in_one_thread_is_an_error_in_another_not_its_answer(edits, ids):
    right = of_adapters(edits, ids)
    edits.merge_adapter()
    merged = logits(edits, ids)
    inside, leave = threading.Event(), threading.Event()
    seen = []

    def stay():
        with edits.disable_adapter():
            seen.append(logits(edits, ids))
            inside.set()
            leave.wait(20)
            seen.append(logits(edits, ids))

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait(20)
    with pytest.raises(HeadEditError, match="taken them out of the weights in disable_adapter"):
        logits(edits, ids)
    with edits.disable_adapter():
        assert torch.equal(logits(edits, ids), right[None])
    leave.set()
    thread.join()
    assert all(torch.equal(found, right[None]) for found in seen)
    assert torch.equal(logits(edits, ids), merged)
    edits.unmerge_adapter()
    assert torch.equal(logits(edits, ids), right["default"])


@pytest.mark.usefixtures("often")
def test_a_pass_sees_the_merged_weights_or_the_original_ones_as_a_whole(edits, ids):
    original = logits(edits, ids)
    edits.merge_adapter()
    merged = logits(edits, ids)
    edits.unmerge_adapter()
    stop = threading.Event()

    def work(number):
        if number == 0:
            for _ in range(20):
                edits.merge_adapter()
                edits.unmerge_adapter()
            stop.set()
            return 0
        wrong = 0
        while not stop.is_set():
            try:
                got = logits(edits, ids)
            except HeadEditError as error:
                wrong += "being merged or unmerged in another thread" not in str(error)
            else:
                wrong += not (torch.equal(got, original) or torch.equal(got, merged))
        return wrong

    assert in_threads(work, 3) == [0] * 3


@pytest.mark.usefixtures("often")
def test_training_in_several_threads_at_once_is_refused_by_name(edits, ids):
    edits.model.train()

    def work(number):
        for _ in range(20):
            edits.model(input_ids=ids, labels=ids).loss.backward()

    with pytest.raises(HeadEditError, match=r"being trained in the thread '.*' at the same time"):
        in_threads(work, 3)


def test_training_in_one_thread_after_another_is_no_mistake(edits, ids):
    edits.model.train()

    def step():
        edits.model(input_ids=ids, labels=ids).loss.backward()

    for _ in range(2):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
        step()
    assert all(vector.grad is not None for vector in edits.vector_parameters())


def test_a_graph_that_waits_for_its_backward_pass_keeps_other_threads_from_training(edits, ids):
    edits.model.train()
    loss = edits.model(input_ids=ids, labels=ids).loss
    with ThreadPoolExecutor(1) as pool, pytest.raises(HeadEditError, match="being trained in the thread 'MainThread'"):
        pool.submit(edits.model, input_ids=ids).result()
    loss.backward()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(edits.model, input_ids=ids).result()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("change", ["adapter", "strength", "context"])
def test_a_recomputed_layer_uses_what_acted_in_its_pass(change, reentrant, edits, ids):
    """Choosing something else between a forward and a backward pass changes no gradient, with checkpointing too."""

    def gradients():
        edits.model.zero_grad()
        torch.manual_seed(0)
        context = edits.at_strength(0.5) if change == "context" else contextlib.nullcontext()
        with context:
            loss = edits.model(input_ids=ids, labels=ids, use_cache=False).loss
        if change == "adapter":
            edits.set_adapter("a")
            edits["default"].requires_grad_(True)  # which setting another adapter took away
        elif change == "strength":
            edits.strength = 0.1
        with ThreadPoolExecutor(1) as pool:  # as on a GPU, where another thread runs backward passes
            pool.submit(loss.backward).result()
        edits.set_adapter("default")
        edits.strength = 1.0
        return [p.grad.clone() for p in edits.vector_parameters()]

    for gate in edits.gate_parameters():
        gate.data.fill_(10.0)  # so that nothing is drawn
    edits.model.train()
    plain = gradients()
    edits.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    edits.model.enable_input_require_grads()
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))
    assert any(bool(gradient.any()) for gradient in plain)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_passes_follow_the_context_of_their_thread_and_task(edits, ids):
    right = of_adapters(edits, ids)
    compiled = torch.compile(edits.model, backend="aot_eager", fullgraph=True)

    @torch.no_grad()
    def run():
        return compiled(input_ids=ids).logits

    def near(found, name):
        torch.testing.assert_close(found, right[name], atol=1e-5, rtol=1e-4)

    near(run(), "default")
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with edits.disable_adapter():
            near(run(), None)
            inside.set()
            leave.wait(60)
            near(run(), None)

    with ThreadPoolExecutor(1) as pool:
        stayed = pool.submit(stay)
        inside.wait(60)
        near(run(), "default")
        with edits.route(["a", "a"]):
            near(run(), "a")
        leave.set()
        stayed.result()

    async def task(context, name, seconds):
        with context:
            for _ in range(2):
                await asyncio.sleep(seconds)
                near(run(), name)

    async def both():
        await asyncio.gather(
            task(edits.disable_adapter(), None, 0.002),
            task(edits.route(["b", "b"]), "b", 0.003),
            task(contextlib.nullcontext(), "default", 0.001),
        )

    asyncio.run(both())
    with edits.disable_adapter(), ThreadPoolExecutor(1) as pool:
        near(pool.submit(contextvars.copy_context().run, run).result(), None)
    near(run(), "default")


@pytest.mark.usefixtures("fresh_compiler")
def test_a_model_that_was_compiled_before_gets_its_edits_and_loses_them_again(ids):
    model = tiny_model("llama").requires_grad_(False)
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        base = compiled(input_ids=ids).logits
        edits = headedit.attach(model)
        randomise(edits)
        torch.testing.assert_close(compiled(input_ids=ids).logits, logits(edits, ids))
        assert not torch.allclose(logits(edits, ids), base, atol=1e-3)
        edits.detach()
        torch.testing.assert_close(compiled(input_ids=ids).logits, base)


def test_contexts_leave_nothing_behind(llama, ids):
    def count():
        gc.collect()
        return sum(isinstance(o, contextvars.ContextVar) for o in gc.get_objects())

    before = None
    for _ in range(5):
        edits = headedit.attach(llama)
        with edits.disable_adapter(), edits.at_strength(0.5):
            logits(edits, ids)
        edits.detach()
        del edits
        before = count() if before is None else before
    assert count() == before
