"""Recipes: presets say what they claim, files read back equal, and every wrong value is refused by name."""

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from fimaq.toolchain.errors import InputError, UsageError
from fimaq.toolchain.recipe import DEFAULT_RECIPE, PRESETS, RECIPES, ActivationConfig, Recipe, WeightConfig, load_recipe


def recipe(**tables):
    return Recipe.from_dict({"name": "test", "weights": {"bits": 4}, "activations": {"bits": 4}, **tables})


def test_the_presets_are_those_documented():
    paper = ["paper-w3a3", "paper-w4a4", "paper-w6a6"]
    deploy = ["deploy-w3a3", "deploy-w4a4", "deploy-w4a8", "deploy-w6a6", "deploy-w8a8"]
    fast = ["fast", "fast-w3a3", "fast-w4a4", "fast-w6a6", "fast-w8a8"]
    symmetric = ["symmetric-w4a8", "symmetric-w8a8"]
    assert sorted(PRESETS) == sorted(paper + deploy + fast + symmetric)
    assert DEFAULT_RECIPE in PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_bits_and_scales_of_its_name(preset):
    loaded = load_recipe(preset)
    assert loaded.name == preset
    kind, _, bits = preset.partition("-")
    assert f"w{loaded.weights.bits}a{loaded.activations.bits}" == (bits or "w4a4")
    scales = loaded.activations.granularity, loaded.activations.matmul_granularity
    assert scales == (("token", "head-token") if kind == "paper" else ("tensor", "tensor"))
    assert loaded.weights.symmetric == (kind == "symmetric")
    assert loaded.activations.symmetric == (preset == "symmetric-w8a8")
    published = loaded.reconstruct.iterations == 20_000 and loaded.reconstruct.samples == 1024
    assert published == (kind != "fast")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_reads_back_equal_as_toml_and_as_a_dict(preset, tmp_path):
    loaded = load_recipe(preset)
    path = tmp_path / f"{preset}.toml"
    path.write_text(loaded.to_toml())
    assert load_recipe(path) == loaded
    assert load_recipe(str(path)) == loaded
    assert Recipe.from_dict(loaded.to_dict()) == loaded


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_file_starts_by_saying_what_it_is_for(preset):
    assert (RECIPES / f"{preset}.toml").read_text().startswith("# ")


def test_the_published_recipe_is_the_default_of_every_field():
    assert load_recipe("paper-w4a4") == Recipe(
        name="paper-w4a4",
        weights=WeightConfig(bits=4),
        activations=ActivationConfig(bits=4, granularity="token", matmul_granularity="head-token"),
    )


def test_a_name_with_quotes_and_accents_survives_toml(tmp_path):
    named = recipe(name='é "quoted" \\ 😀')
    path = tmp_path / "r.toml"
    path.write_text(named.to_toml(), encoding="utf-8")
    assert load_recipe(path) == named


def test_equal_values_make_equal_recipes_whatever_the_number_type():
    assert recipe(fisher={"p1": 1}).to_toml() == recipe(fisher={"p1": 1.0}).to_toml()


def test_a_file_names_only_what_it_changes_and_is_called_after_itself(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "fast-w3a3"\n[reconstruct]\niterations = 50\n')
    mine, base = load_recipe(path), load_recipe("fast-w3a3")
    assert mine.name == "mine"
    assert mine.reconstruct.iterations == 50
    assert mine.reconstruct.samples == base.reconstruct.samples
    assert mine.weights == base.weights


def test_a_base_may_be_a_file_beside_the_recipe(tmp_path):
    (tmp_path / "a.toml").write_text('base = "b.toml"\nseed = 3\n')
    (tmp_path / "b.toml").write_text("[weights]\nbits = 5\n[activations]\nbits = 6\n")
    loaded = load_recipe(tmp_path / "a.toml")
    assert (loaded.weights.bits, loaded.activations.bits, loaded.seed) == (5, 6, 3)


def test_a_base_that_leads_back_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text('base = "b.toml"\n')
    (tmp_path / "b.toml").write_text('base = "a.toml"\n')
    with pytest.raises(UsageError, match="leads back to itself"):
        load_recipe(tmp_path / "a.toml")


def test_overrides_reach_their_fields_and_the_name_says_so():
    fast = load_recipe("fast")
    changed = fast.with_overrides(
        wbits=3,
        abits=5,
        fisher="low-rank",
        rank=2,
        calib_samples=10,
        fisher_samples=11,
        recon_samples=64,
        iters=7,
        batch_size=8,
        seed=9,
    )
    assert (changed.weights.bits, changed.activations.bits) == (3, 5)
    assert (changed.fisher.kind, changed.fisher.rank, changed.fisher.samples) == ("low-rank", 2, 11)
    assert changed.calibrate.samples == 10
    assert (changed.reconstruct.samples, changed.reconstruct.iterations, changed.reconstruct.batch_size) == (64, 7, 8)
    assert changed.seed == 9
    assert changed.name.startswith("fast+weights.bits=3+activations.bits=5")
    assert changed.name.endswith("+seed=9")
    assert changed.with_overrides(wbits=2).name.startswith("fast+weights.bits=2+activations.bits=5")


def test_overrides_that_change_nothing_leave_the_recipe_equal():
    fast = load_recipe("fast")
    assert fast.with_overrides() == fast
    assert fast.with_overrides(wbits=4, fisher="dplr", seed=0) == fast


def test_a_recipe_is_frozen():
    with pytest.raises(FrozenInstanceError):
        load_recipe("fast").seed = 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": {"bits": 9}}, r"weights.bits \(--wbits\): got 9, wanted an integer from 2 to 8"),
        ({"weights": {"bits": 4.0}}, "weights.bits .*: got 4.0, wanted an integer"),
        ({"weights": {"bits": True}}, "weights.bits .*: got True, wanted an integer"),
        ({"weights": {"bits": "4"}}, "weights.bits .*: got '4', wanted an integer"),
        ({"weights": {}}, r"\[weights\]: 'bits' is missing"),
        ({"weights": 4}, "weights: got 4, wanted a table"),
        ({"weights": {"bitz": 4}}, r"\[weights\]: unknown key 'bitz'. Did you mean 'bits'\?"),
        ({"fisherr": {}}, r"recipe: unknown key 'fisherr'. Did you mean 'fisher'\?"),
        ({"activations": {"bits": 4, "granularity": "head"}}, "granularity: got 'head', wanted one of tensor, token"),
        ({"activations": {"bits": 4, "matmul_granularity": []}}, r"got \[\], wanted one of tensor, head, head-token"),
        ({"first_conv_input_bits": 4}, "first_conv_input_bits: got 4, wanted an integer equal to 8"),
        ({"calibrate": {"augment": "none"}}, "augment: got 'none', wanted one of train, eval"),
        (
            {"calibrate": {"samples": 0}},
            r"calibrate.samples \(--calib-samples\): got 0, wanted .* 1 or more",
        ),
        ({"calibrate": {"reparam_layernorm": 1}}, "reparam_layernorm: got 1, wanted true or false"),
        ({"fisher": {"kind": "dlpr"}}, r"fisher.kind \(--fisher\): got 'dlpr', wanted one of dplr, low-rank"),
        ({"fisher": {"temperature": 0}}, "temperature: got 0, wanted a number above 0"),
        ({"fisher": {"temperature": float("inf")}}, "temperature: got inf, wanted a number above 0"),
        ({"fisher": {"p1": -1}}, "p1: got -1, wanted a number of 0 or more"),
        ({"fisher": {"p1": 0, "p2": 0}}, "p1 or p2 above 0"),
        (
            {"fisher": {"samples": 65}, "reconstruct": {"samples": 64}},
            "at most the 64 images of reconstruction, .* Lower it too: --fisher-samples 64, or raise --recon-samples",
        ),
        ({"reconstruct": {"matmul_precision": "low"}}, "one of highest, medium"),
        ({"reconstruct": {"scale_lr": float("nan")}}, "scale_lr: got nan"),
        ({"reconstruct": {"quantized_input": 1.5}}, "quantized_input: got 1.5, wanted a number from 0 to 1"),
        ({"reconstruct": {"beta_end": 30}}, "beta_end: got 30.0, wanted at most beta_start, 20"),
        (
            {"reconstruct": {"samples": 8}},
            "batch_size .*: got 32, wanted at most the 8 .* Lower it too: --batch-size 8, or raise --recon-samples",
        ),
        ({"seed": -1}, r"seed \(--seed\): got -1, wanted an integer from 0 to"),
        ({"seed": 10**400}, "wanted an integer from 0 to"),
        ({"name": ""}, "name: got '', wanted a name"),
        ({"name": "two\nlines"}, "wanted a name of printable characters"),
        ({"name": 3}, "name: got 3, wanted text"),
    ],
)
def test_a_wrong_field_is_refused_by_name(values, message):
    with pytest.raises(UsageError, match=message):
        recipe(**values)


def test_without_reconstruction_its_batch_size_does_not_matter():
    assert recipe(reconstruct={"samples": 8, "iterations": 0}).reconstruct.samples == 8


def test_an_override_is_checked_too():
    with pytest.raises(UsageError, match="--wbits"):
        load_recipe("fast").with_overrides(wbits=1)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UsageError, match=r"'fsat' is unknown. Did you mean 'fast'\?.*\.toml file or one of"):
        load_recipe("fsat")


@pytest.mark.parametrize("path", ["absent.toml", "folder/absent"])
def test_a_missing_file_is_an_input_error(path):
    with pytest.raises(InputError, match=r"does not exist. Wanted a .toml file or one of"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed = ", "is not TOML"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_not_toml_is_an_input_error(tmp_path, content, message):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_recipe(path)


def test_a_base_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("base = 3\n")
    with pytest.raises(UsageError, match="base: got 3"):
        load_recipe(path)


def test_recipes_load_without_torch_or_numpy():
    code = "import sys; from fimaq.toolchain.recipe import load_recipe; load_recipe('fast'); "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'numpy')))"
    subprocess.run([sys.executable, "-c", code], check=True)
