"""Merging adapters: names, sums, order, restoring, reports and refusals."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors import safe_open
from tiny_adapters import FAMILIES, Originals, ldm_names, low_rank, tiny_components, tiny_unet, write_safetensors
from torch import nn

from civman.diffusion.match_adapter import weights_of
from civman.diffusion.merge_adapters import Adapter, apply, restore
from civman.errors import Incompatible, InvalidModelFile, Refused

TO_Q, TO_K = ("attn1.to_q", "attn2.to_k")


def module_ending(root: nn.Module, ending: str) -> tuple[str, nn.Module]:
    return next((name, module) for name, module in root.named_modules() if name.endswith(ending))


def saved(folder: Path, tensors, *, name="adapter", metadata=None, **scales) -> Adapter:
    path = folder / f"{name}.safetensors"
    return Adapter(path, write_safetensors(path, tensors, metadata), **scales)


def kohya(components, family="sd1") -> dict[str, nn.Module]:
    """Every linear layer that LoRAs are usually trained on, under kohya's names."""
    found = {}
    for component, prefixes in (("unet", "lora_unet_"), ("text_encoder", None), ("text_encoder_2", "lora_te2_")):
        prefix = prefixes or ("lora_te1_" if family == "sdxl" else "lora_te_")
        for name, module in components.get(component, nn.Module()).named_modules():
            if isinstance(module, nn.Linear) and (".attn" in name or "self_attn" in name):
                inner = name if component == "unet" else f"text_model.{name.removeprefix('text_model.')}"
                found[prefix + inner.replace(".", "_")] = module
    return found


@pytest.fixture
def unet():
    return tiny_unet("sd1")


@pytest.fixture
def base(unet):
    return Originals({"unet": unet})


# --- names


@pytest.mark.parametrize("family", FAMILIES)
def test_original_names_are_the_ones_that_diffusers_converts_from(family):
    unet = tiny_unet(family)
    parameters = dict(unet.named_parameters())
    ldm, index = ldm_names(unet), weights_of({"unet": unet})
    checkpoint = {}
    for name in parameters:
        module, _, leaf = name.rpartition(".")
        checkpoint[f"model.diffusion_model.{ldm[module]}.{leaf}"] = name

    back = convert_ldm_unet_checkpoint(checkpoint, dict(unet.config))

    assert back == {name: name for name in parameters}
    for module, original in ldm.items():
        assert index.weight("unet", original.replace(".", "_")).name == module


def layouts():
    """Way of naming → (module of the UNet or None, name in the file, endings of the two tensors)."""
    kohya_ends = ("lora_down.weight", "lora_up.weight")
    peft_ends = ("lora_A.weight", "lora_B.weight")
    to_q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    ldm = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    text = "encoder.layers.1.self_attn.q_proj"
    out = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    return {
        "kohya": ("unet", to_q, f"lora_unet_{to_q.replace('.', '_')}", kohya_ends),
        "kohya-original": ("unet", to_q, f"lora_unet_{ldm.replace('.', '_')}", kohya_ends),
        "kohya-time": ("unet", "time_embedding.linear_1", "lora_unet_time_embed_0", kohya_ends),
        "lycoris": ("unet", to_q, f"lycoris_{to_q.replace('.', '_')}", kohya_ends),
        "peft": ("unet", to_q, f"unet.{to_q}", peft_ends),
        "peft-old": ("unet", to_q, f"unet.{to_q}", ("lora.down.weight", "lora.up.weight")),
        "ai-toolkit": ("unet", to_q, f"diffusion_model.{ldm}", peft_ends),
        "ai-toolkit-diffusers": ("unet", to_q, f"diffusion_model.{to_q}", peft_ends),
        "processors": (
            "unet",
            out,
            f"unet.{out.replace('to_out.0', 'processor.to_out_lora')}",
            ("down.weight", "up.weight"),
        ),
        "kohya-te": ("text_encoder", text, f"lora_te_text_model_{text.replace('.', '_')}", kohya_ends),
        "kohya-te1": ("text_encoder", text, f"lora_te1_text_model_{text.replace('.', '_')}", kohya_ends),
        "peft-te": ("text_encoder", text, f"text_encoder.text_model.{text}", peft_ends),
        "peft-te-flat": ("text_encoder", text, f"text_encoder.{text}", peft_ends),
        "legacy-te": (
            "text_encoder",
            text,
            f"text_encoder.text_model.{text}",
            ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
        ),
        "kohya-te2": (
            "text_encoder_2",
            f"text_model.{text}",
            f"lora_te2_text_model_{text.replace('.', '_')}",
            kohya_ends,
        ),
        "kohya-te2-projection": ("text_encoder_2", "text_projection", "lora_te2_text_projection", kohya_ends),
        "peft-te2": ("text_encoder_2", f"text_model.{text}", f"text_encoder_2.text_model.{text}", peft_ends),
    }


@pytest.mark.parametrize("layout", layouts())
def test_every_way_of_naming_a_module_reaches_it(layout, tmp_path):
    component, module, written, (down_end, up_end) = layouts()[layout]
    components = tiny_components("sdxl" if component == "text_encoder_2" else "sd1")
    base = Originals(components)
    weight = base(component, f"{module}.weight")
    down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)

    [coverage] = apply(components, base, [saved(tmp_path, {f"{written}.{down_end}": down, f"{written}.{up_end}": up})])

    assert coverage.matched == (f"{component}.{module}",)
    assert torch.equal(components[component].get_parameter(f"{module}.weight"), torch.addmm(weight, up, down))


def test_lycoris_text_names_fit_only_where_there_is_one_text_encoder(tmp_path):
    name = "lycoris_text_model_encoder_layers_0_self_attn_q_proj"
    one, two = tiny_components("sd1"), tiny_components("sdxl")
    adapter = saved(tmp_path, low_rank({name: module_ending(one["text_encoder"], "layers.0.self_attn.q_proj")[1]}, 1))

    [coverage] = apply(one, Originals(one), [adapter])

    assert coverage.matched == ("text_encoder.encoder.layers.0.self_attn.q_proj",)
    with pytest.raises(Incompatible, match="which of the model's two text encoders"):
        apply(two, Originals(two), [adapter])


# --- kinds that lycoris does not write


def test_older_glora_files_name_their_factors_the_other_way_round(unet, base, tmp_path):
    name, module = module_ending(unet, TO_K)
    out, into = module.weight.shape
    now = {
        "a1": torch.randn(into, 2), "a2": torch.randn(2, into), "b1": torch.randn(out, 2), "b2": torch.randn(2, into),
    }  # fmt: skip
    swapped = {"a1": now["a2"], "a2": now["a1"], "b1": now["b2"], "b2": now["b1"]}
    results = []
    for tensors in (now, swapped):
        reports = apply(
            {"unet": unet}, base, [saved(tmp_path, {f"unet.{name}.{key}.weight": t for key, t in tensors.items()})]
        )
        results.append(module.weight.detach().clone())
        restore({"unet": unet}, base, reports)

    assert torch.equal(*results)


@pytest.mark.parametrize("ending", [TO_K, "conv1"])
def test_magnitudes_of_peft_are_per_output(unet, base, ending, tmp_path):
    name, module = module_ending(unet, ending)
    weight = module.weight.detach().clone()
    tensors = low_rank({f"unet.{name}": module}, 5)
    down, up = tensors[f"unet.{name}.lora_down.weight"], tensors[f"unet.{name}.lora_up.weight"]
    magnitude = torch.rand(weight.shape[0]) + 0.5
    stored = {
        f"unet.{name}.lora_A.weight": down,
        f"unet.{name}.lora_B.weight": up,
        f"unet.{name}.lora_magnitude_vector": magnitude.reshape(-1)
        if weight.ndim == 2
        else magnitude[None, :, None, None],
    }

    apply({"unet": unet}, base, [saved(tmp_path, stored)])

    turned = weight.flatten(1) + up.flatten(1) @ down.flatten(1)
    expected = turned * (magnitude / turned.norm(dim=1))[:, None]
    assert torch.allclose(module.weight, expected.reshape(weight.shape), atol=1e-6)


def test_peft_header_gives_alpha_where_no_tensor_does(unet, base, tmp_path):
    (first, q), (second, k) = module_ending(unet, TO_Q), module_ending(unet, TO_K)
    tensors = low_rank({f"unet.{first}": q, f"unet.{second}": k}, 6)
    stored = {name: tensor for name, tensor in tensors.items() if not name.endswith("alpha")}
    said = {"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {second: 1}}
    weights = {name: base("unet", f"{name}.weight").clone() for name in (first, second)}

    apply({"unet": unet}, base, [saved(tmp_path, stored, metadata={"lora_adapter_metadata": json.dumps(said)})])

    for name, scale in ((first, 4.0), (second, 0.5)):
        product = tensors[f"unet.{name}.lora_up.weight"] @ tensors[f"unet.{name}.lora_down.weight"]
        expected = weights[name] + scale * product
        assert torch.allclose(unet.get_parameter(f"{name}.weight"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "shape"),
    [("oft_blocks", (4, 4, 4)), ("oft_blocks", (2, 4, 4, 4)), ("dora_scale", (16, 1)), ("factor", (16,))],
)
def test_a_scale_is_the_share_of_the_way_for_kinds_that_are_not_linear(unet, base, part, shape, tmp_path):
    name, module = module_ending(unet, TO_Q)
    tensors = {f"unet.{name}.{'weight' if part == 'factor' else part}": torch.rand(shape)}
    if part == "dora_scale":
        tensors |= low_rank({f"unet.{name}": module}, 7)
    if part == "factor":
        tensors[f"unet.{name}.on_input"] = torch.tensor([False])
    weight = module.weight.detach().clone()
    results = []
    for scale in (1.0, 0.25):
        reports = apply({"unet": unet}, base, [saved(tmp_path, tensors, unet_scale=scale)])
        results.append(module.weight.detach().clone())
        restore({"unet": unet}, base, reports)

    assert torch.allclose(weight + 0.25 * (results[0] - weight), results[1], atol=1e-6)


# --- several at once


def mixed(components, folder: Path) -> list[Adapter]:
    """Three adapters of different kinds on the same modules."""
    unet = components["unet"]
    targets = {f"unet.{name}": module for name, module in unet.named_modules() if name.endswith((TO_Q, TO_K))}
    rotated = {
        f"{name}.oft_blocks": torch.randn(4, m.weight.shape[0] // 4, m.weight.shape[0] // 4)
        for name, m in targets.items()
    }
    decomposed = low_rank(targets, 3) | {
        f"{name}.dora_scale": torch.rand(m.weight.shape[0], 1) + 0.5 for name, m in targets.items()
    }
    return [
        saved(folder, low_rank(kohya(components), 2), name="plain", unet_scale=0.8, te_scale=0.3),
        saved(folder, rotated, name="rotated", unet_scale=0.5),
        saved(folder, decomposed, name="decomposed", unet_scale=-0.4),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_order_of_adapters_does_not_change_a_bit(dtype, tmp_path):
    components = {name: module.to(dtype) for name, module in tiny_components("sd1").items()}
    base = Originals(components)
    torch.manual_seed(0)
    adapters = mixed(components, tmp_path)
    results = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        reports = apply(components, base, [adapters[number] for number in order])
        assert [report.name for report in reports] == [adapters[number].label for number in order]
        results.append({n: p.detach().clone() for m in components.values() for n, p in m.named_parameters()})
        restore(components, base, reports)

    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)
    assert base.untouched(components)


def test_each_adapter_acts_on_the_file_s_weights_not_on_what_another_made(tmp_path):
    components = {"unet": tiny_unet("sd1")}
    base = Originals(components)
    torch.manual_seed(0)
    adapters = mixed(components, tmp_path)
    name = f"{module_ending(components['unet'], TO_Q)[0]}.weight"
    weight = base("unet", name)
    changes = []
    for adapter in adapters:
        reports = apply(components, base, [adapter])
        changes.append(components["unet"].get_parameter(name).detach() - weight)
        restore(components, base, reports)

    apply(components, base, adapters)

    assert torch.allclose(components["unet"].get_parameter(name), weight + sum(changes), atol=1e-6)


def test_the_sum_is_rounded_once(tmp_path):
    components = {"unet": tiny_unet("sd1").half()}
    base = Originals(components)
    name, module = module_ending(components["unet"], TO_K)
    parts = [low_rank({f"unet.{name}": module}, seed, size=0.01) for seed in range(8)]
    adapters = [saved(tmp_path, tensors, name=f"a{number}") for number, tensors in enumerate(parts)]

    apply(components, base, adapters)

    exact = base("unet", f"{name}.weight").double()
    for tensors in parts:
        exact += 0.5 * (tensors[f"unet.{name}.lora_up.weight"] @ tensors[f"unet.{name}.lora_down.weight"]).double()
    assert torch.equal(module.weight, exact.half())


def test_one_file_at_two_scales_counts_as_their_sum(unet, base, tmp_path):
    name, module = module_ending(unet, TO_K)
    adapter = saved(tmp_path, low_rank({f"unet.{name}": module}, 1))
    twice = [Adapter(adapter.path, adapter.sha256, unet_scale=scale) for scale in (0.25, 0.5)]
    apply({"unet": unet}, base, twice)
    summed = module.weight.detach().clone()

    apply({"unet": unet}, base, [Adapter(adapter.path, adapter.sha256, unet_scale=0.75)])

    assert torch.allclose(module.weight, summed, atol=1e-6)


# --- putting back


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_restoring_gives_back_every_bit(dtype, tmp_path):
    components = {name: module.to(dtype) for name, module in tiny_components("sdxl").items()}
    base = Originals(components)
    reports = apply(components, base, [saved(tmp_path, low_rank(kohya(components, "sdxl"), 1))])
    assert not base.untouched(components)

    restore(components, base, reports)

    assert base.untouched(components)


def test_merging_into_a_memory_map_leaves_the_map_as_it_is(unet, tmp_path):
    write_safetensors(tmp_path / "base.safetensors", dict(unet.named_parameters()))
    name, module = module_ending(unet, TO_K)
    with safe_open(tmp_path / "base.safetensors", "pt") as file:
        for parameter, value in unet.named_parameters():
            value.data = file.get_tensor(parameter)
        before = file.get_tensor(f"{name}.weight").clone()

        def base(_component, parameter):
            return file.get_tensor(parameter)

        reports = apply({"unet": unet}, base, [saved(tmp_path, low_rank({f"unet.{name}": module}, 1))])

        assert torch.equal(file.get_tensor(f"{name}.weight"), before)
        assert not torch.equal(module.weight, before)
        restore({"unet": unet}, base, reports)
        assert module.weight.data_ptr() == file.get_tensor(f"{name}.weight").data_ptr()


def test_a_memory_format_survives(unet, tmp_path):
    unet = unet.to(memory_format=torch.channels_last)
    base = Originals({"unet": unet})
    name, module = module_ending(unet, "conv1")

    apply({"unet": unet}, base, [saved(tmp_path, low_rank({f"unet.{name}": module}, 1))])

    assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_of_another_dtype_than_the_file_s_are_rounded_from_the_file(unet, base, tmp_path):
    name, module = module_ending(unet, TO_K)
    exact = base("unet", f"{name}.weight")
    tensors = low_rank({f"unet.{name}": module}, 1)
    unet.half()

    apply({"unet": unet}, base, [saved(tmp_path, tensors)])

    product = tensors[f"unet.{name}.lora_up.weight"].double() @ tensors[f"unet.{name}.lora_down.weight"].double()
    assert torch.equal(module.weight, (exact.double() + 0.5 * product).half())


# --- scales and reports


def test_scale_0_is_no_adapter(tmp_path):
    components = tiny_components("sd1")
    base = Originals(components)

    [report] = apply(components, base, [saved(tmp_path, low_rank(kohya(components), 1), unet_scale=0.0, te_scale=0.0)])

    assert base.untouched(components)
    assert report.norms == {"text_encoder": 0.0, "unet": 0.0}
    assert report.matched


@pytest.mark.parametrize(("scales", "touched"), [({"unet_scale": 0.0}, "text_encoder"), ({"te_scale": 0.0}, "unet")])
def test_unet_and_text_encoders_have_scales_of_their_own(scales, touched, tmp_path):
    components = tiny_components("sd1")
    base = Originals(components)

    [report] = apply(components, base, [saved(tmp_path, low_rank(kohya(components), 1), **scales)])

    assert {component for component, _ in report.parameters} == {touched}
    assert [name for name, norm in report.norms.items() if norm > 0] == [touched]


def test_the_report_says_how_large_the_change_is(tmp_path):
    components = tiny_components("sd1")
    base = Originals(components)

    [report] = apply(components, base, [saved(tmp_path, low_rank(kohya(components), 1), unet_scale=0.5)])

    for component, norm in report.norms.items():
        squares = sum(
            float((value.detach() - base(component, name)).double().square().sum())
            for name, value in components[component].named_parameters()
        )
        assert norm == pytest.approx(math.sqrt(squares), rel=1e-5)
    assert report.kinds == ("lora",)


# --- refusals


def test_an_adapter_for_another_model_is_an_error(unet, base, tmp_path):
    adapter = saved(tmp_path, low_rank({"lora_unet_double_blocks_0_img_attn_qkv": nn.Linear(8, 8)}, 1))

    with pytest.raises(Incompatible, match="fits no part") as caught:
        apply({"unet": unet}, base, [adapter], allow_partial=True)

    assert caught.value.code == "adapter-no-match"
    assert caught.value.facts["unmatched"] == ["lora_unet_double_blocks_0_img_attn_qkv: not in the model"]


def test_a_partial_fit_is_an_error_that_names_both_shapes(unet, base, tmp_path):
    (fits, q), (wide, _) = module_ending(unet, TO_Q), module_ending(unet, TO_K)
    adapter = saved(tmp_path, low_rank({f"unet.{fits}": q, f"unet.{wide}": nn.Linear(32, 16)}, 1))

    with pytest.raises(Incompatible, match="shape 16x32, but the weight has 16x24") as caught:
        apply({"unet": unet}, base, [adapter])

    assert caught.value.code == "adapter-partial"
    assert base.untouched({"unet": unet})
    [report] = apply({"unet": unet}, base, [adapter], allow_partial=True)
    assert [miss.module for miss in report.unmatched] == [f"unet.{wide}"]


def test_a_tensor_of_no_known_kind_is_not_passed_over(unet, base, tmp_path):
    name, module = module_ending(unet, TO_Q)
    tensors = low_rank({f"unet.{name}": module}, 1) | {f"unet.{name}.mystery": torch.ones(1)}

    with pytest.raises(Incompatible, match="mystery: the tensor belongs to no known kind"):
        apply({"unet": unet}, base, [saved(tmp_path, tensors)])


def test_two_names_for_one_weight_are_not_added_up(unet, base, tmp_path):
    name, module = module_ending(unet, TO_Q)
    flat = f"lora_unet_{name.replace('.', '_')}"

    with pytest.raises(Incompatible, match="changes the same weight"):
        apply({"unet": unet}, base, [saved(tmp_path, low_rank({flat: module, f"unet.{name}": module}, 1))])


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"lora_down.weight": (3, 16)}, "different ranks: 2 and 3"),
        ({"dora_scale": (5, 1)}, "dora_scale of shape 5x1"),
        ({"lora_mid.weight": (2, 2, 3, 3)}, "shape 16x144, but the weight has 16x16"),
        ({"hada_w1_a": (16, 2)}, "no known kind of adapter"),
    ],
)
def test_tensors_that_do_not_go_together_are_a_misfit(unet, base, broken, reason, tmp_path):
    name, module = module_ending(unet, TO_Q)
    tensors = low_rank({f"unet.{name}": module}, 1)
    tensors |= {f"unet.{name}.{key}": torch.ones(shape) for key, shape in broken.items()}

    with pytest.raises(Incompatible, match=reason):
        apply({"unet": unet}, base, [saved(tmp_path, tensors)])


@pytest.mark.parametrize("size", [0.0, 1e-6])
def test_an_adapter_that_changes_no_bit_is_an_error(size, tmp_path):
    components = {"unet": tiny_unet("sd1").half()}
    base = Originals(components)
    name, module = module_ending(components["unet"], TO_K)
    loud = saved(tmp_path, low_rank({f"unet.{name}": module}, 2), name="loud")
    silent = saved(tmp_path, low_rank({f"unet.{name}": module}, 1, size=size), name="silent")

    with pytest.raises(Incompatible, match=r"`silent.safetensors` changes nothing") as caught:
        apply(components, base, [loud, silent])

    assert caught.value.code == "adapter-no-change"
    assert base.untouched(components)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e4])
def test_values_that_are_not_finite_are_an_error_and_leave_no_trace(bad, tmp_path):
    components = {"unet": tiny_unet("sd1").half()}
    base = Originals(components)
    (first, q), (second, k) = module_ending(components["unet"], TO_Q), module_ending(components["unet"], TO_K)
    tensors = low_rank({f"unet.{first}": q, f"unet.{second}": k}, 1)
    for part in ("down", "up"):
        tensors[f"unet.{second}.lora_{part}.weight"][:] = bad

    with pytest.raises(Incompatible) as caught:
        apply(components, base, [saved(tmp_path, tensors)])

    assert caught.value.code == "adapter-not-finite"
    assert base.untouched(components)


def test_pickles_and_other_files_are_refused(unet, base, tmp_path):
    pickled, page, short = (tmp_path / name for name in ("old.pt", "page.safetensors", "short.safetensors"))
    torch.save({"a": torch.ones(1)}, pickled)
    page.write_text("<!doctype html>" * 20)
    short.write_bytes(b"\x40\0\0\0\0\0\0\0{}")

    with pytest.raises(Refused) as caught:
        apply({"unet": unet}, base, [Adapter(pickled, "0" * 64)])
    assert caught.value.code == "pickle"
    for path in (page, short, tmp_path / "missing.safetensors"):
        with pytest.raises(InvalidModelFile):
            apply({"unet": unet}, base, [Adapter(path, "0" * 64)])


def test_a_header_length_that_begins_like_a_pickle_is_none(unet, base, tmp_path):
    name, module = module_ending(unet, TO_Q)
    tensors = low_rank({f"unet.{name}": module}, 1)
    for padding in range(0, 256, 8):
        adapter = saved(tmp_path, tensors, metadata={"filler": "x" * padding})
        if adapter.path.read_bytes()[0] == 0x80:
            break

    assert adapter.path.read_bytes()[0] == 0x80
    assert apply({"unet": unet}, base, [adapter])[0].matched
