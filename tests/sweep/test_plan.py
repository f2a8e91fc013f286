"""Plans: what they multiply to, what decides a run, and each refusal before the first run."""

from pathlib import Path

import pytest

from fimaq.toolchain.errors import InputError, UsageError
from fimaq.toolchain.sweep.plan import identity, load_plan, run_name

OWN = sorted((Path(__file__).parents[2] / "benchmarks/plans").glob("*.toml"))
ONE = '[[run]]\nmodel = "a"\nrecipe = "fast-w4a4"\n'


def tables(plan):
    return [dict(configuration.table) for configuration in plan.configurations]


def test_lists_multiply_in_the_order_of_the_plan(plan):
    text = '[[run]]\nmodel = ["a", "b"]\nrecipe = "fast-w4a4"\nseed = [1, 2]\n[[run]]\nmodel = "a"\nrecipe = "float"\n'
    assert tables(load_plan(plan(text))) == [
        {"model": "a", "recipe": "fast-w4a4", "seed": 1},
        {"model": "a", "recipe": "fast-w4a4", "seed": 2},
        {"model": "b", "recipe": "fast-w4a4", "seed": 1},
        {"model": "b", "recipe": "fast-w4a4", "seed": 2},
        {"model": "a", "recipe": "float"},
    ]


def test_a_run_that_is_named_twice_is_made_once(plan):
    assert len(load_plan(plan(ONE + ONE)).configurations) == 1


def test_options_change_the_recipe(plan):
    text = '[[run]]\nmodel = "a"\nrecipe = "mine.toml"\nwbits = 3\nfisher = "mse"\ncalib-samples = 5\nseed = 9\n'
    (configuration,) = load_plan(plan(text)).configurations
    recipe = configuration.recipe
    assert (recipe.weights.bits, recipe.activations.bits, recipe.fisher.kind) == (3, 4, "mse")
    assert (recipe.calibrate.samples, recipe.seed, recipe.reconstruct.iterations) == (5, 9, 7)


def test_rounding_to_nearest_may_have_fewer_images_than_fisher_would(plan):
    few = ONE + "recon-samples = 16\n"
    assert load_plan(plan(few + "iters = 0\n")).configurations[0].recipe.reconstruct.samples == 16
    with pytest.raises(UsageError, match="Lower it too: --fisher-samples 16, or raise --recon-samples"):
        load_plan(plan(few))


def test_paths_are_relative_to_the_plan_and_options_come_first(plan, folder):
    loaded = load_plan(plan(ONE))
    assert (loaded.calib, loaded.val) == (str(folder / "calib"), str(folder / "val"))
    assert loaded.weights_of("a") == folder / "weights" / "a.safetensors"
    other = load_plan(plan(ONE), calib="hfds/x", val="other", weights=folder / "w")
    assert (other.calib, other.val, other.weights) == ("hfds/x", "other", folder / "w")
    assert load_plan(plan(ONE, 'calib = "hfds/x"\nval = "val"\n')).calib == "hfds/x"
    assert load_plan(plan(ONE, 'calib = "calib"\nval = "val"\n')).weights_of("a") is None


def test_what_decides_a_run(plan, folder):
    facts = {"calib": "c", "val": "v", "weights": "w"}

    def identities(text=ONE, facts=facts):
        return [identity(configuration, facts) for configuration in load_plan(plan(text)).configurations]

    (first,) = identities()
    assert identities() == [first]
    assert identities('[[run]]\nrecipe = "fast-w4a4"\nmodel = "a"\nseed = 0\n') == [first]  # said, but the same
    for text in (ONE.replace('"a"', '"b"'), ONE + "seed = 1\n", ONE.replace("w4a4", "w3a3")):
        assert identities(text) != [first]
    for key in facts:
        assert identities(facts=facts | {key: "other"}) != [first]
    mine = ONE.replace("fast-w4a4", "mine.toml")
    before = identities(mine)
    (folder / "mine.toml").write_text((folder / "mine.toml").read_text().replace("7", "8"))
    assert identities(mine) != before


def test_a_name_is_safe_for_a_file(plan):
    text = '[[run]]\nmodel = "hf-hub:x/y|z"\nrecipe = "fast-w4a4"\n'
    (configuration,) = load_plan(plan(text)).configurations
    assert run_name(configuration, "0123456789") == "hf-hub_x_y_z-fast-w4a4-01234567"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no \[\[run\]\] table"),
        ("run = 3\n", r"has no \[\[run\]\] table"),
        ("[[run]]\nseed = 1\n", r"table 1: model is None; wanted the name of a timm model"),
        ("[[run]]\nmodel = 3\n", "model is 3"),
        ("[[run]]\nmodel = []\n", r"table 1: model is an empty list, which makes no run\."),
        (ONE + ONE + "modle = 1\n", r"table 2: unknown key 'modle'. Did you mean 'model'\?"),
        (ONE + "wbits = 9\n", r"table 1: recipe field weights.bits \(--wbits\): got 9"),
        (ONE + 'wbits = [4, "x"]\n', "got 'x'"),
        (ONE.replace("w4a4", "w4a5"), "recipe 'fast-w4a5' is unknown"),
        (ONE.replace('"fast-w4a4"', "4"), "recipe is 4; wanted the name of a preset"),
        (ONE.replace("fast-w4a4", "float") + "wbits = 4\n", "wbits cannot be meant for the float model"),
        (f"vall = 3\n{ONE}", "unknown key 'vall'. Did you mean 'val'"),
    ],
)
def test_a_plan_that_cannot_be_meant(text, message, plan):
    with pytest.raises(UsageError, match=message):
        load_plan(plan(text))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('val = "val"\n', "names no calib images. Give --calib DIR"),
        ('calib = "calib"\n', "names no val images. Give --val DIR"),
        ('calib = "calib"\nval = 3\n', "val is 3; wanted the path of a folder"),
    ],
)
def test_data_that_are_named_nowhere(data, message, plan):
    with pytest.raises(UsageError, match=message):
        load_plan(plan(ONE, data))


def test_a_plan_that_cannot_be_read(plan, folder):
    with pytest.raises(InputError, match=r"nowhere\.toml cannot be read"):
        load_plan(folder / "nowhere.toml")
    with pytest.raises(InputError, match="is not TOML"):
        load_plan(plan("[[run"))
    with pytest.raises(InputError, match=r"gone\.toml does not exist"):
        load_plan(plan(ONE.replace("fast-w4a4", "gone.toml")))


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_no_run_of_the_benchmarks_is_refused(path):
    assert load_plan(path, calib="calib", val="val").configurations
