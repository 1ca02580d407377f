"""The extension in a double of AUTOMATIC1111's web UI and of Forge, held to ``attach`` on the same UNet."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

import hnkernels as hn
from tests.integrations.nodes import weight_net
from tests.integrations.webui_double import STEPS, running
from tests.models import TEXT_WIDTH, UNET_TOLERANCE, WIDTHS, copied, make_net, relative_error


@pytest.fixture(params=["A1111", "Forge"])
def webui(request, tmp_path):
    with running(request.param, tmp_path) as started:
        yield started


@pytest.fixture
def nets(webui):
    """Two files in the web UI's folder, of which one lies deeper, and their networks."""
    made = {"ink": make_net(activation="relu"), "wash": make_net((TEXT_WIDTH, WIDTHS[0]), activation="tanh")}
    hn.save_hypernetwork(made["ink"], webui.hypernetworks / "ink.pt")
    (webui.hypernetworks / "more").mkdir()
    hn.save_hypernetwork(made["wash"], webui.hypernetworks / "more" / "wash.safetensors")
    return made


def attached(webui, *nets_and_strengths):
    """What ``attach`` computes on a copy of the web UI's UNet."""
    unet = copied(webui.unet)
    for net, strength in nets_and_strengths:
        hn.attach(unet, net, strength)
    with torch.no_grad():
        return unet(*webui.inputs)


def close(outputs, expected):
    return all(relative_error(output, expected) < UNET_TOLERANCE for output in outputs)


@pytest.mark.filterwarnings("ignore:the hypernetwork is for the widths")
def test_tags_of_a_prompt_act_as_attached_and_are_gone_afterwards(webui, nets):
    before = webui.draw("a castle")[1]
    p, outputs = webui.draw("a castle <hypernet:ink:0.7><hypernet:wash>")
    assert close(outputs, attached(webui, (nets["ink"], 0.7), (nets["wash"], 1.0)))
    assert not close(outputs, before[0])
    assert p.extra_generation_params["Hypernetwork hashes"].startswith("ink: ")
    assert all(torch.equal(a, b) for a, b in zip(webui.draw("a castle")[1], before, strict=True))
    assert webui.patcher.model_options == {"transformer_options": {}}


def test_a_name_with_an_old_hash_is_the_name(webui, nets):
    assert close(webui.draw("<hypernet:ink(1a2b3c4d):0.5>")[1], attached(webui, (nets["ink"], 0.5)))


def test_the_setting_of_the_web_ui_that_adds_a_hypernetwork_counts(webui, nets):
    webui.opts.data |= {"sd_hypernetwork": "ink", "extra_networks_default_multiplier": 0.4}
    p, outputs = webui.draw("a castle")
    assert close(outputs, attached(webui, (nets["ink"], 0.4)))
    assert p.all_prompts == ["a castle<hypernet:ink:0.4>"]
    assert close(webui.draw("a castle <hypernet:ink:0.9>")[1], attached(webui, (nets["ink"], 0.9)))


def test_the_panel_sets_strength_and_place_and_the_infotext_brings_it_back(webui, nets):
    where = '{"up": 0.5, "attn2": {"k": 0}}'
    p, outputs = webui.draw("<hypernet:ink:0.8>", 0.5, where)
    assert close(outputs, attached(webui, (nets["ink"], {"*": 0.4, "up": 0.5, "attn2": {"k": 0}})))
    written = p.extra_generation_params
    assert written["hnkernels strength"] == 0.5
    assert written["hnkernels where"] == where
    assert "hnkernels start" not in written
    as_text = {name: str(value) for name, value in written.items()}
    assert [function(as_text) for _, function in webui.script.infotext_fields] == [0.5, where, 0.0, 1.0]
    assert [control for control, _ in webui.script.infotext_fields] == webui.controls


def test_networks_act_between_the_shares_of_the_steps(webui, nets):
    outputs = webui.draw("<hypernet:ink>", 1, "", 0.3, 0.7)[1]
    acting, plain = attached(webui, (nets["ink"], 1.0)), webui.draw("")[1][0]
    for step, output in enumerate(outputs):
        progress = step / (STEPS - 1)
        assert close([output], acting if 0.3 <= progress <= 0.7 else plain), step


def test_style_mixtures_of_weight_hypernetworks_act_as_generated(webui):
    net = weight_net()
    net.save(webui.hypernetworks / "styles.safetensors")
    outputs = webui.draw("<hypernet:styles:0.9:ink=0.7:oil=0.3>", 1, '{"attn2": 0.5, "up": {"k": 0}}')[1]
    weights = net.generate_weights({"ink": 0.7, "oil": 0.3}).scaled(0.9).scaled({"attn2": 0.5}).scaled({"up.k": 0})
    unet = copied(webui.unet)
    order = [*(f"down_blocks.{i}.attentions.0" for i in range(2)), "mid_block.attentions.0"]
    order += [f"up_blocks.{i}.attentions.{j}" for i in range(2) for j in range(2)]
    paths = ["input_blocks.1.1", "input_blocks.3.1", "middle_block.1", *(f"output_blocks.{i}.1" for i in range(4))]
    for layer in weights.layers:
        block, _, rest = layer.name.partition(".transformer_blocks.")
        path = f"{paths[order.index(block)]}.transformer_blocks.{rest}"
        unet.get_submodule(path).weight.data += weights.dense(layer.name)[0]
    with torch.no_grad():
        expected = unet(*webui.inputs)
    assert close(outputs, expected)
    assert not close(outputs, webui.draw("")[1][0])


def test_generated_weights_have_names_that_tell_them_apart(tmp_path):
    with running("Forge", tmp_path) as webui:
        weight_net().save(webui.hypernetworks / "styles.safetensors")
        names = set()
        for tag in ("styles:1:ink=1", "styles:1:ink=0.5", "styles:0.5:ink=1"):
            webui.draw(f"<hypernet:{tag}>")
            names |= set(webui.model.forge_objects.unet.names)
        assert len(names) == 3


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ("nobody", "there is no hypernetwork 'nobody'.*there are: ink, other, styles, wash"),
        ("ink:much", "is not a hypernetwork tag"),
        ("ink:1:2", "at most one strength"),
        ("ink:1:oil=1", "has no styles"),
        ("styles:1", "name its styles"),
        ("other", "for another model"),
    ],
)
def test_what_cannot_be_applied_is_said_and_nothing_acts(webui, nets, tag, says):
    weight_net().save(webui.hypernetworks / "styles.safetensors")
    hn.save_hypernetwork(make_net((320, 768)), webui.hypernetworks / "other.pt")
    plain = webui.draw("")[1][0]
    p, outputs = webui.draw(f"<hypernet:{tag}>")
    assert re.search(says, p.comments[0])
    assert str(p.errors[0]) in p.comments[0]
    assert close(outputs, plain)


def test_with_a_panel_that_cannot_be_read_nothing_acts(webui, nets):
    plain = webui.draw("")[1][0]
    for panel, says in (((1, "{up: 1}"), "not JSON"), ((1, "", 0.5, 0.1), "start <= end")):
        p, outputs = webui.draw("<hypernet:ink>", *panel)
        assert says in p.comments[0]
        assert close(outputs, plain)


def test_switched_off_nothing_of_the_web_ui_is_changed(webui, nets):
    webui.loaded.append("a network of the web UI")
    webui.opts.set("hnkernels_enabled", False)
    assert webui.registry == {"hypernet": webui.own}
    plain = webui.draw("")[1][0]
    webui.own.asked.clear()
    p, outputs = webui.draw("<hypernet:ink:0.7>", 0.5, "not read", 0.9, 0.1)
    assert webui.own.asked == [[["ink", "0.7"]]]
    assert all(torch.equal(output, plain) for output in outputs)
    assert p.extra_generation_params == {}
    assert webui.loaded == ["a network of the web UI"]
    webui.grid.axis_options.clear()
    webui.start()  # the page is loaded again
    assert webui.registry == {"hypernet": webui.own}
    assert webui.grid.axis_options == []


def test_switched_on_again_it_acts_and_the_web_uis_networks_do_not(webui, nets):
    webui.opts.set("hnkernels_enabled", False)
    webui.loaded.append("a network of the web UI")
    webui.opts.set("hnkernels_enabled", True)
    assert webui.loaded == []
    assert close(webui.draw("<hypernet:ink:0.7>")[1], attached(webui, (nets["ink"], 0.7)))
    assert webui.own.asked == []


def test_after_a_reload_of_the_page_everything_is_there_once(webui, nets):
    webui.start()
    assert {name: len(functions) for name, functions in webui.callbacks.items()} == {
        "before_ui": 1, "cfg_denoiser": 1, "ui_tabs": 1}  # fmt: skip
    assert close(webui.draw("<hypernet:ink:0.7>")[1], attached(webui, (nets["ink"], 0.7)))


def test_grids_have_axes_for_names_and_settings(webui, nets):
    axes = {axis.label: axis for axis in webui.grid.axis_options}
    assert len(axes) == len(webui.grid.axis_options) == 4
    assert axes["[hnkernels] Hypernetwork"].choices() == ["None", "ink", "wash"]
    axes["[hnkernels] Hypernetwork"].confirm(None, ["ink", "None"])
    with pytest.raises(RuntimeError, match="there is no hypernetwork 'oil'"):
        axes["[hnkernels] Hypernetwork"].confirm(None, ["oil"])
    cell = SimpleNamespace(prompt="a castle")
    axes["[hnkernels] Hypernetwork"].apply(cell, "ink", ["ink"])
    axes["[hnkernels] Strength"].apply(cell, 0.25, [0.25])
    fields = {name: value for name, value in vars(cell).items() if name != "prompt"}
    outputs = webui.draw(cell.prompt, 1, "", **fields)[1]
    assert close(outputs, attached(webui, (nets["ink"], 0.25)))


def test_a_cell_of_a_grid_tells_nothing_of_the_cell_before(webui, nets):
    shared: dict = {}
    webui.draw("<hypernet:ink>", hnkernels_strength=0.25, hnkernels_end=0.5, extra_generation_params=shared)
    assert set(shared) == {"hnkernels strength", "hnkernels end", "Hypernetwork hashes"}
    webui.draw("a castle", hnkernels_strength=1.0, hnkernels_end=1.0, extra_generation_params=shared)
    assert shared == {}


def test_a_model_that_is_loaded_is_not_a_picture(webui, nets):
    webui.opts.data["sd_hypernetwork"] = "ink"
    plain = attached(webui)
    loading = SimpleNamespace(sd_model=webui.model, all_prompts=None, extra_generation_params={})
    webui.registry["hypernet"].activate(loading, [])
    assert loading.extra_generation_params == {}
    with torch.no_grad():
        assert torch.equal(webui.unet(*webui.inputs), plain)


def test_the_refiners_model_has_the_networks_too(tmp_path):
    with running("A1111", tmp_path) as webui:
        net = make_net(activation="relu")
        hn.save_hypernetwork(net, webui.hypernetworks / "ink.pt")
        second = copied(webui.unet)
        torch.nn.init.normal_(second.input_blocks[0][0].weight)
        from hnkernels.integrations.webui.acting import Acting
        from hnkernels.integrations.webui.files import Use
        from hnkernels.integrations.webui.network import SESSION

        SESSION.begin([Use("ink", 0.6)], Acting(), webui.model)
        webui.model.model.diffusion_model = second
        SESSION.step(webui.model, 2, 4)
        with torch.no_grad():
            got, first = second(*webui.inputs), webui.unet(*webui.inputs)
        SESSION.end()
        assert close([first], attached(webui))
        webui.unet = second
        assert close([got], attached(webui, (net, 0.6)))
        with torch.no_grad():
            assert torch.equal(second(*webui.inputs), attached(webui))
