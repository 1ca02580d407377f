"""Plans and kept values last until what they assumed changes, and no longer."""

import copy
import gc
import pickle
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.training_utils import EMAModel
from torch import nn

import hnkernels as hn
from hnkernels.adapter.host import Host
from hnkernels.ops.casting import exchange_casts
from tests.adapter.hosts import by_hand
from tests.adapter.test_composition import Int8Linear
from tests.adapter.test_weights import make_generator
from tests.models import (
    TEXT_WIDTH,
    UNET_TOLERANCE,
    attention_layers,
    copied,
    denoise,
    make_net,
    noise,
    prompt,
    relative_error,
    tiny_unet,
)


@pytest.fixture(params=["relu", None], ids=["kept", "fused"])
def net(request):
    return make_net(activation=request.param)


@pytest.fixture
def adapter(unet, net):
    adapter = hn.attach(unet, net)
    return adapter if net.config.activation else adapter.fuse()


@pytest.fixture
def pure(unet):
    return copied(unet)


def check(unet, pure, net, x, text, t=10):
    """The model gives what the MLPs by hand give."""
    expected = denoise(by_hand(pure, net), x, text, t)
    assert relative_error(denoise(unet, x, text, t), expected) < UNET_TOLERANCE


@torch.no_grad()
def write_through_data(module, factor=1.5):
    for p in module.parameters():
        version = p._version
        p.data.mul_(factor)
        assert p._version == version


class TestWritesWithoutATrace:
    @torch.no_grad()
    def test_into_the_network(self, unet, pure, net, adapter, x, text):
        for _ in range(3):
            check(unet, pure, net, x, text)
            write_through_data(net)
        check(unet, pure, net, x, text)

    @torch.no_grad()
    def test_into_the_model(self, unet, pure, net, adapter, x, text):
        for _ in range(3):
            check(unet, pure, net, x, text)
            for model in (unet, pure):
                write_through_data(model.mid_block)
        check(unet, pure, net, x, text)

    @torch.no_grad()
    def test_by_an_average_of_the_weights_and_back(self, unet, net, adapter, x, text):
        ema = EMAModel(unet.parameters())
        for shadow in ema.shadow_params:
            shadow.mul_(1.2)
        before = denoise(unet, x, text)
        ema.store(unet.parameters())
        ema.copy_to(unet.parameters())
        averaged = denoise(unet, x, text)
        assert torch.equal(averaged, denoise(unet, x, text.clone()))
        assert relative_error(averaged, before) > 100 * UNET_TOLERANCE
        ema.restore(unet.parameters())
        assert torch.equal(denoise(unet, x, text), before)

    def test_by_a_fused_optimizer_that_trains_on_another_model(self, unet, net, adapter, x, text):
        other = tiny_unet()
        hn.attach(other, net)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
        for _ in range(2):
            with torch.no_grad():
                got = denoise(unet, x, text)
                adapter.clear_cache()
                assert torch.equal(denoise(unet, x, text), got)
            denoise(other, x, text).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    @pytest.mark.parametrize("write", ["negated", "refilled", "one element"])
    def test_of_few_or_symmetric_bits(self, unet, pure, net, adapter, x, text, write):
        check(unet, pure, net, x, text)
        for p in net.parameters():
            if write == "negated":
                p.data.neg_()
            elif write == "refilled":
                p.data.fill_(0.25)
        if write == "one element":
            net[TEXT_WIDTH][0].linear[0].weight.data[1, 2] += 3
        check(unet, pure, net, x, text)

    @torch.no_grad()
    def test_are_seen_at_the_start_of_a_run_whatever_its_timesteps_are(self, unet, pure, net, adapter, x, text):
        for write, t in ((True, 999), (False, 500), (True, 700), (True, 700), (True, 701)):
            if write:
                write_through_data(net, 1.2)
            check(unet, pure, net, x, text, t)

    @torch.no_grad()
    @pytest.mark.parametrize("then", [10, 11, (9, 10), (10, 9), (11, 9), (9, 8)])
    def test_are_seen_unless_the_timestep_of_every_row_falls(self, unet, pure, net, adapter, x, text, then):
        first = 10 if isinstance(then, int) else (10, 8 if then == (9, 8) else 10)
        check(unet, pure, net, x, text, first)
        write_through_data(net)
        check(unet, pure, net, x, text, then)

    def test_are_seen_after_a_recorded_call(self, unet, pure, net, adapter, x, text):
        net.requires_grad_(False)
        with torch.no_grad():
            check(unet, pure, net, x, text, 10)
        denoise(unet, x.clone().requires_grad_(), text, 10)
        write_through_data(net)
        with torch.no_grad():
            check(unet, pure, net, x, text, 9)

    @torch.no_grad()
    def test_within_a_run_are_the_exception_that_clear_cache_is_for(self, unet, pure, net, x, text):
        adapter = hn.attach(unet, make_net((TEXT_WIDTH,)))
        denoise(unet, x, text, 10)
        write_through_data(adapter.net)
        adapter.clear_cache()
        check(unet, pure, adapter.net, x, text, 9)


@torch.no_grad()
def test_equal_calls_with_unchanged_weights_are_served_from_what_is_kept(unet, x, text):
    adapter = hn.attach(unet, make_net())
    for _ in range(3):
        denoise(unet, x, text)
    assert adapter.stats().misses == 14
    assert adapter.stats().hits == 28


@torch.no_grad()
def test_a_run_is_proven_once(unet, x, text, monkeypatch):
    from hnkernels.adapter.proof import Watch

    taken = []
    fingerprint = Watch.fingerprint
    monkeypatch.setattr(Watch, "fingerprint", lambda self: taken.append(1) or fingerprint(self))
    hn.attach(unet, make_net())
    negative, batch = prompt(), torch.tensor([5, 500])
    for t in (30, 20, 10):
        denoise(unet, x, text, t)
        denoise(unet, x, negative, t)
    assert len(taken) == 2  # each prompt starts one
    denoise(unet, x, text, 10)
    assert len(taken) == 3
    for shift in (0, 1, 2):
        unet(x, batch - shift, text)
    assert len(taken) == 4
    denoise(unet, x, text.clone(), 1)
    assert len(taken) == 5


def change_in_place(unet, net, adapter):
    for layer in attention_layers(unet, "attn1").values():
        layer.to_v.weight.mul_(1.5)


def change_by_loading(unet, net, adapter):
    net.load_state_dict({k: v * 1.3 for k, v in net.state_dict().items()})


def change_by_moving(unet, net, adapter):
    nn.Module.to(unet, torch.float64)
    nn.Module.to(unet, torch.float32)
    net.double()


def change_strength(unet, net, adapter):
    adapter.strength = {"attn1": 0.5}


def change_enabled(unet, net, adapter):
    adapter.enabled = False


def change_mode(unet, net, adapter):
    adapter.strength = 0.5
    net.train()


def change_multiplier(unet, net, adapter):
    net.set_multiplier(0.5)


def change_projection(unet, net, adapter):
    for layer in attention_layers(unet).values():
        layer.to_k = Int8Linear(layer.to_k)


def change_hooks(unet, net, adapter):
    for layer in attention_layers(unet).values():
        layer.to_k.register_forward_pre_hook(lambda m, args: (args[0] * 2,))


def change_wrapper(unet, net, adapter):
    for layer in attention_layers(unet).values():
        layer.to_k.forward = lambda x, f=layer.to_k.forward: f(x) * 1.5


CHANGES = [change for name, change in list(globals().items()) if name.startswith("change_")]


@pytest.mark.parametrize("within", [False, True], ids=["between runs", "between steps"])
@pytest.mark.parametrize("change", CHANGES, ids=[c.__name__ for c in CHANGES])
def test_what_is_changed_counts_at_once(unet, net, adapter, x, text, change, within):
    with torch.no_grad():
        denoise(unet, x, text, 20)
        before = denoise(unet, x, text, 10)
        change(unet, net, adapter)
        after = denoise(unet, x, text, 9 if within else 10)
        adapter.clear_cache()
        Host.of(unet)._prover.watch = None
        assert torch.equal(denoise(unet, x, text, 9 if within else 10), after)
        if change not in (change_by_moving, change_mode):  # in training mode strength is 1, as it was before
            assert relative_error(after, before) > 1e-4


@torch.no_grad()
def test_a_weight_that_moves_within_its_storage_counts_at_once(unet, pure, net, adapter, x, text):
    weights = [layer.to_v.weight for layer in attention_layers(unet).values()]
    storages = [torch.stack([weight, 1.5 * weight]) for weight in weights]
    for place in (0, 1):
        for weight, storage in zip(weights, storages, strict=True):
            version = weight._version
            weight.data = storage[place]
            assert weight._version == version
        pure.load_state_dict(unet.state_dict())
        check(unet, pure, net, x, text, 20 - place)


@torch.no_grad()
def test_widths_that_do_not_act_have_nothing_to_do_with_what_is_kept(unet, x, text):
    net = make_net()
    adapter = hn.attach(unet, net, targets="attn2")
    denoise(unet, x, text, 20)
    computed = adapter.stats().misses
    for width in {*net} - {TEXT_WIDTH}:
        write_through_data(net.layers[str(width)])
        net.layers[str(width)][0].linear[0].weight.mul_(2)
    denoise(unet, x, text, 10)
    assert adapter.stats().misses == computed
    net.layers[str(TEXT_WIDTH)][0].linear[0].weight.mul_(2)
    denoise(unet, x, text, 5)
    assert adapter.stats().misses == 2 * computed


@pytest.mark.parametrize("inside", [torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_a_mode_that_changes_inside_a_call(unet, net, adapter, x, text, inside):
    block = unet.mid_block.attentions[0]
    forward = block.forward

    def within(*args, **kwargs):
        with inside():
            return forward(*args, **kwargs)

    block.forward = within
    with torch.no_grad():
        denoise(unet, x, text, 20)
        got = denoise(unet, x, text, 10)
        adapter.clear_cache()
        expected = denoise(unet, x, text, 10)
        assert torch.equal(got, expected)
        block.forward = forward
        assert torch.equal(denoise(unet, x, text, 9), uncached(unet, adapter, x, text, 9))


def uncached(unet, adapter, x, text, t):
    adapter.clear_cache()
    return denoise(unet, x, text, t)


def test_recording_switched_off_inside_a_call_takes_nothing_from_the_gradient(unet, x, text):
    net = make_net()
    hn.attach(unet, net)
    block = unet.down_blocks[0].attentions[0]
    forward = block.forward
    block.forward = lambda *args, **kwargs: torch.no_grad()(forward)(*args, **kwargs)
    denoise(unet, x, text).square().sum().backward()
    assert net[TEXT_WIDTH][0].linear[0].weight.grad.any()


@torch.no_grad()
@pytest.mark.parametrize(("attribute", "value", "later"), [("enabled", False, 0.0), ("strength", 0.5, 0.5)])
def test_the_strength_may_change_inside_a_call(unet, pure, x, text, attribute, value, later):
    net = make_net()
    adapter = hn.attach(unet, net)
    hook = unet.mid_block.register_forward_pre_hook(lambda *_: setattr(adapter, attribute, value))
    expected = denoise(by_hand(pure, net), x, text)
    for t in (20, 10):
        adapter.enabled, adapter.strength = True, 1.0
        mixed = denoise(unet, x, text, t)
    hook.remove()
    assert relative_error(mixed, expected) > 1e-3
    adapter.strength = {"mid": later, "up": later}
    adapter.enabled = True
    assert relative_error(denoise(unet, x, text, 10), mixed) < UNET_TOLERANCE


def forget(unet, adapter):
    adapter.clear_cache()


def attach_another(unet, adapter):
    hn.attach(unet, make_net())


def detach_one(unet, adapter):
    hn.adapters(unet)["second"].detach()


def replace_a_projection(unet, adapter):
    layer = list(attention_layers(unet).values())[-1]
    layer.to_k = nn.Linear(TEXT_WIDTH, layer.to_k.out_features, bias=False)


@torch.no_grad()
@pytest.mark.parametrize("change", [forget, attach_another, detach_one, replace_a_projection])
def test_a_change_inside_a_call_counts_in_the_next(unet, adapter, x, text, change):
    hn.attach(unet, make_net(), name="second")
    denoise(unet, x, text, 30)
    hook = unet.mid_block.register_forward_pre_hook(lambda *_: change(unet, adapter))
    assert denoise(unet, x, text, 20).isfinite().all()
    hook.remove()
    after = denoise(unet, x, text, 10)
    assert relative_error(after, uncached(unet, adapter, x, text, 10)) < UNET_TOLERANCE


@torch.no_grad()
def test_a_network_of_odd_width_changes_its_dtype(unet, x, text):
    net = make_net(layer_structure=(1, 0.8, 1))  # 9 values in a row: those of half precision fill no integer of 32 bits
    hn.attach(unet, net)
    expected = denoise(unet, x, text)
    net.half()
    assert relative_error(denoise(unet, x, text), expected) < 0.01


@torch.no_grad()
@pytest.mark.parametrize("warm", [False, True])
def test_a_traced_model_follows_its_prompt(unet, pure, net, adapter, x, text, warm):
    class Traced(nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = unet

        def forward(self, *args):
            return self.unet(*args, return_dict=False)[0]

    net.requires_grad_(False)
    t = torch.tensor(20)
    if warm:
        denoise(unet, x, text, 30)
    traced = torch.jit.trace(Traced(), (x, t, text), check_trace=False)
    text = prompt()
    assert relative_error(traced(x, t, text), denoise(by_hand(pure, net), x, text, 20)) < UNET_TOLERANCE


@torch.no_grad()
def test_parameters_under_a_transform_of_functions(unet, pure, x, text):
    net = make_net()
    hn.attach(unet, net)
    denoise(unet, x, text, 20)

    def changed(scale):
        parameters = {name: p * scale for name, p in unet.named_parameters()}
        return torch.func.functional_call(unet, parameters, (x, 10, text), {"return_dict": False})[0]

    doubled = copied(pure)
    for p in doubled.parameters():
        p.mul_(2)
    y = torch.func.vmap(changed)(torch.tensor([1.0, 2.0]))
    for actual, model in zip(y, (pure, doubled), strict=True):
        assert relative_error(actual, denoise(by_hand(model, net), x, text)) < UNET_TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_plans_for_itself(unet, net, adapter, x, text, duplicate):
    before = denoise(unet, x, text)
    twin = duplicate(unet)
    (its_own,) = Host.of(twin).adapters
    adapter.strength = 0.5
    assert torch.equal(denoise(twin, x, text), before)
    its_own.strength = 0.5
    assert torch.equal(denoise(twin, x, text), denoise(unet, x, text))


@torch.no_grad()
def test_a_pickle_works_in_another_process(x, text, tmp_path):
    kept, fused = tiny_unet(), tiny_unet()
    hn.attach(kept, make_net())
    hn.attach(fused, make_net(activation=None)).fuse()
    for unet in (kept, fused):
        denoise(unet, x, text)
    torch.save([(unet, x, text, denoise(unet, x, text)) for unet in (kept, fused)], tmp_path / "model.pt")
    script = """
import sys, torch
for unet, x, text, expected in torch.load(sys.argv[1], weights_only=False):
    with torch.no_grad():
        for t in (10, 9):
            unet(x, t, text)
        assert torch.allclose(unet(x, torch.tensor(10), text).sample, expected, atol=1e-5)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "model.pt")], check=True)


@pytest.mark.parametrize("shared", [True, False], ids=["one model", "a model each"])
@pytest.mark.parametrize("grad", [False, True])
def test_threads_with_prompts_of_their_own(net, x, shared, grad):
    unet = tiny_unet()
    adapter = hn.attach(unet, net)
    if not net.config.activation:
        adapter.fuse()
    unets = [unet if shared else copied(unet) for _ in range(3)]
    texts = [prompt() for _ in unets]
    with torch.set_grad_enabled(grad):
        expected = [denoise(u, x, text).detach() for u, text in zip(unets, texts, strict=True)]
    failures = []

    def work(i):
        try:
            with torch.set_grad_enabled(grad):
                for t in range(12):
                    got = denoise(unets[i], x, texts[i], 10).detach()
                    if relative_error(got, expected[i]) > UNET_TOLERANCE:
                        failures.append(f"wrong in thread {i}, call {t}")
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(unets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", ["context", "weights"])
def test_a_call_has_one_strength_though_another_thread_changes_it(net, x, text, kind, grad):
    unet = tiny_unet()
    source = net if kind == "context" else make_generator(unet).float()(["ink"]).detach()
    adapter = hn.attach(unet, source)
    strengths, expected = (0.3, {"attn1": 0.9, "attn2": hn.PerRow(0, 1)}), []
    with torch.set_grad_enabled(grad):
        for adapter.strength in strengths:
            expected.append(denoise(unet, x, text).detach())
    assert relative_error(expected[0], expected[1]) > 100 * UNET_TOLERANCE
    done, wrong = threading.Event(), []

    def change():
        while not done.wait(1e-4):
            for adapter.strength in strengths:
                pass

    def work():
        with torch.set_grad_enabled(grad):
            for _ in range(20):
                got = denoise(unet, x, text).detach()
                if min(relative_error(got, y) for y in expected) > UNET_TOLERANCE:
                    wrong.append(got)

    changing, working = threading.Thread(target=change), [threading.Thread(target=work) for _ in range(2)]
    for thread in (changing, *working):
        thread.start()
    for thread in working:
        thread.join()
    done.set()
    changing.join()
    assert not wrong


def test_an_exception_inside_a_layer_ends_the_call(unet, net, adapter, x, text):
    with torch.no_grad():
        expected = denoise(unet, x, text)
        layer = list(attention_layers(unet).values())[3]
        hook = layer.to_out[0].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            denoise(unet, x, text)
        assert Host.of(unet).shared.calls.current is None
        hook.remove()
        assert torch.equal(denoise(unet, x, text), expected)


@torch.no_grad()
def test_a_call_that_is_interrupted_is_not_taken_for_one_that_runs(unet, net, adapter, x, text):
    expected = denoise(unet, x, text)
    hook = unet.mid_block.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        denoise(unet, x, text)
    hook.remove()
    assert torch.equal(denoise(unet, x, text), expected)
    assert Host.of(unet).shared.calls.current is None


def test_an_interrupted_call_keeps_no_casts(unet, x, text):
    hn.attach(unet, make_net())
    hook = unet.mid_block.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(KeyboardInterrupt):
        denoise(unet, x, text)
    hook.remove()
    denoise(unet, x, text)
    assert exchange_casts(None) is None


@torch.no_grad()
def test_a_call_within_a_call(unet, net, adapter, x, text):
    other = prompt()
    expected, nested = denoise(unet, x, text), denoise(unet, x, other)
    seen = []

    def within(*_):
        if not seen:
            seen.append(None)
            seen[0] = denoise(unet, x, other)

    hook = unet.mid_block.register_forward_hook(within)
    assert torch.equal(denoise(unet, x, text), expected)
    assert torch.equal(seen[0], nested)
    hook.remove()


class NoProjections(AttnProcessor2_0):
    """Computes K and V past the modules."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        return attn.to_out[0](nn.functional.linear(context, attn.to_v.weight).mean(1, keepdim=True) + 0 * hidden_states)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("how", ["processor", "class", "forward"])
def test_an_attention_that_is_swapped_after_it_was_verified(unet, net, adapter, x, text, how, grad):
    with torch.set_grad_enabled(grad):
        expected = denoise(unet, x, text)
        layer = list(attention_layers(unet).values())[2]
        assert not layer._forward_hooks  # verified: nothing looks on any more
        before = layer.processor
        if how == "processor":
            layer.set_processor(NoProjections())
        elif how == "class":
            kind = type(layer)
            processor = NoProjections()

            class Past(kind):
                def forward(self, *args, **kwargs):
                    return processor(self, *args, **kwargs)

            layer.__class__ = Past
        else:
            layer.forward = lambda *args, **kwargs: NoProjections()(layer, *args, **kwargs)
        with pytest.raises(hn.AdapterError, match="computed its attention without"):
            denoise(unet, x, text)
        if how == "processor":
            layer.set_processor(before)
        elif how == "class":
            layer.__class__ = kind
        else:
            del layer.forward
        assert torch.equal(denoise(unet, x, text), expected)
        assert not layer._forward_hooks


@torch.no_grad()
def test_an_attention_that_is_replaced_is_said(unet, net, adapter, x, text):
    before, block = denoise(unet, x, text), unet.mid_block
    unet.mid_block = copy.deepcopy(block)
    with pytest.raises(hn.AdapterError, match=r"mid_block.*is another module than when the hypernetwork was attached"):
        denoise(unet, x, text)
    unet.mid_block = block
    assert torch.equal(denoise(unet, x, text), before)
    block.attentions, attentions = nn.ModuleList([nn.Identity()]), block.attentions
    assert not hasattr(block.attentions[0], "transformer_blocks")  # taken out on purpose: nothing is in its place
    block.forward = lambda hidden_states, *args, **kwargs: hidden_states
    assert denoise(unet, x, text).isfinite().all()
    del block.forward
    block.attentions = attentions
    assert torch.equal(denoise(unet, x, text), before)


@torch.no_grad()
@pytest.mark.parametrize("how_many", [1, 14])
def test_an_attention_that_goes_past_its_taps_though_it_looks_as_before(unet, net, adapter, x, text, how_many):
    denoise(unet, x, text)
    for layer in list(attention_layers(unet).values())[:how_many]:
        layer.processor.__class__ = NoProjections  # the same object, which no signature tells from before
    denoise(unet, x, text)  # it may have skipped them, as caching tools do at some steps
    with pytest.raises(hn.AdapterError, match="computed its attention without"):
        denoise(unet, x, text)


@torch.no_grad()
def test_blocks_that_are_skipped_at_some_steps(unet, net, adapter, x, text):
    expected = denoise(unet, x, text)
    block = unet.mid_block.attentions[0]
    for _ in range(2):
        block.forward = lambda hidden_states, *_, **__: (hidden_states,)
        for _ in range(3):
            denoise(unet, x, text)
        del block.forward
        assert torch.equal(denoise(unet, x, text), expected)
    assert not any(layer._forward_hooks for layer in attention_layers(unet).values())


class TestCapture:
    """What goes into a CUDA graph, on a machine that only pretends to record one."""

    @pytest.fixture(autouse=True)
    def _captured(self, unet, monkeypatch):
        self.pretend = lambda on: monkeypatch.setattr("hnkernels.adapter.call.capturing", lambda device: on)

    @torch.no_grad()
    def test_the_prompt_is_computed_in_the_graph_and_nothing_of_it_is_kept(self, unet, x, text, evaluations):
        adapter = hn.attach(unet, make_net())
        expected = denoise(unet, x, text)
        evaluations.clear()
        before = adapter.stats()
        self.pretend(True)
        assert torch.equal(denoise(unet, x, text), expected)
        assert evaluations.of_text() == 2  # once for all layers
        assert adapter.stats()[:2] == before[:2]
        self.pretend(False)
        assert torch.equal(denoise(unet, x, text), expected)
        assert evaluations.of_text() == 0

    @torch.no_grad()
    def test_nothing_waits_for_the_device(self, unet, x, text, monkeypatch):
        hn.attach(unet, make_net(activation=None)).fuse()
        self.pretend(True)
        monkeypatch.setattr("hnkernels.adapter.proof.Watch.fingerprint", lambda _: pytest.fail("a wait"))
        monkeypatch.setattr("hnkernels.adapter.projecting.fold_projection", lambda *_: pytest.fail("a wait"))
        denoise(unet, x, text)

    @torch.no_grad()
    def test_folded_weights_are_used_and_live_as_long_as_those_they_were_made_of(self, unet, x, text, evaluations):
        adapter = hn.attach(unet, make_net(activation=None)).fuse()
        expected = denoise(unet, x, text)
        folds = [weakref.ref(fold[0]) for layer in Host.of(unet).layers for fold in layer.folds.values()]
        self.pretend(True)
        assert torch.equal(denoise(unet, x, text), expected)
        assert not evaluations
        self.pretend(False)
        adapter.clear_cache()
        gc.collect()
        assert all(fold() is not None for fold in folds)


@torch.no_grad()
def test_generated_weights_that_change_in_place(unet, x, text):
    weights = make_generator(unet).float().generate_weights("ink").detach()
    adapter = hn.attach(unet, weights)
    before = denoise(unet, x, text, 20)
    for delta in adapter._deltas.values():
        delta.state.b.mul_(2)
    after = denoise(unet, x, text, 10)
    adapter.clear_cache()
    assert torch.equal(denoise(unet, x, text, 10), after)
    assert relative_error(after, before) > 1e-3


def test_the_former_name_of_parallel(unet, x, text):
    nets = [make_net(), make_net()]
    outputs = []
    for option in ({"parallel": True}, {"beside": True}):
        adapters = [hn.attach(unet, nets[0]), hn.attach(unet, nets[1], **option)]
        assert adapters[1].parallel is adapters[1].beside is True
        outputs.append(denoise(unet, x, text))
        adapters[1].beside = False
        assert adapters[1].parallel is False
        assert not torch.equal(denoise(unet, x, text), outputs[-1])
        for adapter in adapters:
            adapter.detach()
    assert torch.equal(*outputs)


@torch.no_grad()
def test_noise_of_another_size_is_another_call_of_the_same_plan(unet, pure, net, adapter, text):
    for batch in (2, 4, 2):
        check(unet, pure, net, noise(batch), text.repeat(batch // 2, 1, 1))
