"""Scenarios: deriving, overriding and checking what TOML files say, and writing it back."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import ScenarioError
from fedsim.job import check_cohort
from fedsim.scenario import Scenario, load, parse
from fedsim.scenario_files import override, shipped
from tests import small

BASE = """
title = "base"
seed = 1
rounds = 3

[data]
name = "digits"
partition = { kind = "dirichlet", clients = 10, alpha = 0.3 }

[model]
name = "cnn"
preset = "small"

[train]
learning_rate = 0.5
batch_size = 8
epochs = 2

[cohort]
fraction = 0.5
"""
CLIENT = "{noise_multiplier=1.0, delta=1e-3, clip=0.5}"
TOML_WORDS = {"true", "false", "inf", "nan"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base.toml", BASE)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def derived(base: Path, text: str) -> Scenario:
    """What a scenario beside `base` that extends it comes to."""
    return load(str(write(base.with_name("derived.toml"), f'extends = "base.toml"\n{text}')))


def values(scenario: Scenario) -> dict[str, Any]:
    """All that a scenario says; not where its file lies."""
    return scenario.model_dump()


def test_a_derived_scenario_changes_what_it_names_and_nothing_else(base: Path) -> None:
    """Equal to the base with the same keys changed by hand."""
    changed = derived(base, 'title = "child"\n[train]\nlearning_rate = 0.25\n[data.partition]\nalpha = 2.0')
    by_hand = BASE.replace('"base"', '"child"').replace("0.5\nb", "0.25\nb").replace("alpha = 0.3", "alpha = 2.0")
    assert values(changed) == values(load(str(write(base, by_hand))))


def test_a_chain_of_extends_applies_the_nearest_last(base: Path) -> None:
    """A grandchild sees its parent's changes over its grandparent's."""
    write(base.with_name("child.toml"), 'extends = "base.toml"\nrounds = 4\nseed = 2')
    grandchild = load(str(write(base.with_name("grandchild.toml"), 'extends = "child.toml"\nrounds = 5')))
    assert (grandchild.title, grandchild.seed, grandchild.rounds) == ("base", 2, 5)


def test_a_shipped_scenario_can_be_extended_by_its_name(tmp_path: Path) -> None:
    """And the folder for own files is the derived scenario's."""
    mine = load(str(write(tmp_path / "mine.toml", 'extends = "quickstart"\nseed = 9')))
    assert values(mine) == values(load("quickstart", ["seed=9"]))
    assert mine.folder == tmp_path


@pytest.mark.parametrize("links", [["a"], ["b", "a"], ["b", "c", "a"]], ids=["itself", "two", "three"])
def test_a_cycle_of_extends_is_refused(tmp_path: Path, links: list[str]) -> None:
    for name, parent in zip(["a", *links], links, strict=False):
        write(tmp_path / f"{name}.toml", f'extends = "{parent}.toml"')
    with pytest.raises(ScenarioError, match=r"a\.toml: extends leads back to itself"):
        load(str(tmp_path / "a.toml"))


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ('"nowhere.toml"', r"mine\.toml: extends: nowhere\.toml: there is no such file"),
        ('"quikstart"', r"mine\.toml: extends: there is no scenario 'quikstart'\. Did you mean quickstart\?"),
        ("3", r"mine\.toml: extends should be the name or file of one scenario"),
    ],
)
def test_what_cannot_be_extended_is_named_with_the_file_that_asks(tmp_path: Path, extends: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        load(str(write(tmp_path / "mine.toml", f"extends = {extends}")))


@pytest.mark.parametrize(
    ("text", "table", "expected"),
    [
        ('[model]\nname = "mlp"', "model", {"name": "mlp"}),
        ("[data.partition]\nkind = 'iid'\nclients = 4", "partition", {"kind": "iid", "clients": 4}),
        ('[model]\nname = "cnn"', "model", {"name": "cnn", "preset": "small"}),
        (
            "[data.partition]\nkind = 'dirichlet'",
            "partition",
            {"kind": "dirichlet", "clients": 10, "alpha": 0.3},
        ),
    ],
    ids=["other name", "other kind", "same name", "same kind"],
)
def test_a_table_that_names_another_function_replaces_the_whole_table(
    base: Path, text: str, table: str, expected: dict[str, Any]
) -> None:
    """The keys of one function mean nothing to another."""
    scenario = derived(base, text)
    found = {"model": scenario.model.model_dump(), "partition": scenario.data.partition}[table]
    assert found == expected
    assert scenario.data.name == "digits"


@pytest.mark.parametrize(
    ("table", "old", "new", "value"),
    [
        ("cohort", "fraction", "size", 3),
        ("cohort", "fraction", "poisson", 0.25),
        ("train", "epochs", "steps", 7),
    ],
)
def test_setting_one_of_several_alternatives_drops_the_others(
    base: Path, table: str, old: str, new: str, value: float
) -> None:
    """In a derived scenario and by --set alike."""
    by_file = getattr(derived(base, f"[{table}]\n{new} = {value}"), table)
    by_set = getattr(load(str(base), [f"{table}.{new}={value}"]), table)
    assert by_file == by_set
    assert getattr(by_set, old) is None
    assert getattr(by_set, new) == value


def test_privacy_by_noise_replaces_privacy_by_epsilon() -> None:
    private = load("quickstart", ["privacy.example.noise_multiplier=1.5"]).privacy.example
    assert private is not None
    assert (private.epsilon, private.noise_multiplier, private.max_grad_norm) == (None, 1.5, 1.0)


@pytest.mark.parametrize("level", ["client", "local"])
def test_so_it_does_at_the_other_levels(base: Path, level: str) -> None:
    """In a derived scenario and by --set; a level is asked for by its table alone."""
    write(base, f"{BASE}\n[privacy.{level}]\nepsilon = 8.0\ndelta = 1e-3\nclip = 0.5\n")
    by_set = load(str(base), [f"privacy.{level}.noise_multiplier=1.5"]).privacy
    by_file = derived(base, f"[privacy.{level}]\nnoise_multiplier = 1.5").privacy
    assert by_set == by_file and by_set.level == level
    table = getattr(by_set, level)
    assert (table.epsilon, table.noise_multiplier, table.delta, table.clip) == (None, 1.5, 1e-3, 0.5)
    assert load(str(base), ["privacy={}"]).privacy.level is None


def test_privacy_has_the_defaults_that_are_written_down(base: Path) -> None:
    """At client level nothing adapts, grows on trees or is amplified unless it is asked for."""
    asked = load(str(base), [f"privacy.client={CLIENT}"]).privacy.client
    assert asked is not None
    assert (asked.adaptive, asked.mechanism, asked.min_separation, asked.accountant) == (None, "gaussian", None, None)
    assert (asked.relation, asked.amplified, asked.max_participations) == ("zero-out", False, None)
    adaptive = load(str(base), [f"privacy.client={CLIENT}", "privacy.client.adaptive={}"]).privacy.client
    assert adaptive is not None and adaptive.adaptive is not None
    assert (adaptive.adaptive.quantile, adaptive.adaptive.rate, adaptive.adaptive.bit_noise) == (0.5, 0.2, None)


@pytest.mark.parametrize("settings", [["cohort.size=3", "cohort.fraction=0.5"], ["train.steps=3", "train.epochs=1"]])
def test_two_alternatives_at_once_are_refused(base: Path, settings: list[str]) -> None:
    """Neither of two wishes is dropped in silence."""
    with pytest.raises(ScenarioError, match="give"):
        load(str(base), settings)


scalars = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text())


@given(value=st.one_of(scalars, st.lists(st.integers(0, 9)), st.dictionaries(st.text("ab", min_size=1), scalars)))
def test_set_takes_any_value_as_toml_writes_it(value: Any) -> None:
    """Type and value arrive as they were; the model's own keys are checked later."""
    written = tomli_w.dumps({"value": value}) if not isinstance(value, dict) else f"value = {inline(value)}"
    found = load("quickstart", [f"model.anything={written.partition('=')[2].strip()}"]).model.settings["anything"]
    assert (type(found), found) == (type(value), value)


def inline(table: dict[str, Any]) -> str:
    """An inline TOML table."""
    pairs = [tomli_w.dumps({key: value}).strip() for key, value in table.items()]
    return "{" + ", ".join(pairs) + "}"


@given(word=st.from_regex(r"[a-z][a-z-]{0,20}", fullmatch=True).filter(lambda word: word not in TOML_WORDS))
def test_a_bare_word_is_a_string(word: str) -> None:
    assert load("quickstart", [f"title={word}"]).title == word


def test_set_reaches_into_tables_and_makes_missing_ones() -> None:
    changed = load("quickstart", ["data.partition.alpha=1.5", "train.schedule.kind=cosine"])
    assert changed.data.partition == {"kind": "dirichlet", "clients": 10, "alpha": 1.5}
    assert changed.train.schedule is not None and changed.train.schedule.kind == "cosine"


def test_set_reaches_a_strategy_that_no_file_names(base: Path) -> None:
    """FedAvg is the default, and so are its hyper-parameters' names."""
    strategy = load(str(base), ["strategy.weights=uniform"]).strategy
    assert (strategy.name, strategy.settings) == ("fedavg", {"weights": "uniform"})


def test_override_leaves_its_argument_alone() -> None:
    content = {"train": {"epochs": 1, "inner": {"key": 1}}}
    assert override(content, {"train.steps": 2, "train.inner.key": 2})["train"] == {"steps": 2, "inner": {"key": 2}}
    assert content == {"train": {"epochs": 1, "inner": {"key": 1}}}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.lerning_rate=1.0", r"train\.lerning_rate is not known\. Did you mean learning_rate\?"),
        ("raunds=3", r"raunds is not known\. Did you mean rounds\?"),
        ("privacy.example.epsilom=1", r"privacy\.example\.epsilom is not known\. Did you mean epsilon\?"),
        ("evaluate.zzz=1", r"evaluate\.zzz is not known\. Known: batch_size, clients, clients_every"),
        ("data.split.cental=0.1", r"data\.split\.cental is not known\. Did you mean central\?"),
        ("rounds=2.5", r"rounds = 2\.5: input should be a valid integer"),
        ("rounds=two", r"rounds = 'two': input should be a valid integer"),
        ("rounds=0", r"rounds = 0: input should be greater than or equal to 1"),
        ("train.learning_rate='0.1'", r"train\.learning_rate = '0\.1': input should be a valid number"),
        ("train.learning_rate=nan", r"train\.learning_rate = nan: input should be a finite number"),
        ("cohort.fraction=0", r"cohort\.fraction = 0: input should be greater than 0"),
        ("cohort.fraction=1.5", r"cohort\.fraction = 1\.5: input should be less than or equal to 1"),
        ("train.optimizer=sdg", r"train\.optimizer = 'sdg': input should be 'sgd', 'adam' or 'adamw'"),
        ("seed=true", r"seed = True: input should be a valid integer"),
        ("data.split.train=0.9", r"data\.split: train, validation and test must add up to 1"),
        ("train.learning_rate.x=1", r"train\.learning_rate\.x cannot be set: learning_rate is not a table"),
        ("stop.at_least=0.9", r"stop: at_least and at_most need metric"),
        ("rounds", r"--set rounds: write it as key=value"),
        ("=3", r"--set =3: write it as key=value"),
        ("origin=foo", r"^quickstart: origin is not known\."),
        ("folder=/tmp", r"^quickstart: folder is not known\."),
        ("train.schedule={every=10}", r"train\.schedule: with factor 1 nothing changes"),
        ("train.schedule={kind='cosine',factor=0.5}", r"train\.schedule: every and factor belong to kind step"),
        ("privacy={without={}}", r"privacy: without needs example"),
        ("privacy.without={'data.min_rows'=3}", r"privacy: without cannot change data\.min_rows; only rounds"),
        ("privacy.without={model={name='mlp'}}", r"privacy: without cannot change model\.name"),
        ("checkpoint.every=0", r"checkpoint\.every = 0: input should be greater than or equal to 1"),
        ("checkpoint.evry=2", r"checkpoint\.evry is not known\. Did you mean every\?"),
        ("records.clients=1.5", r"records\.clients = 1\.5: should be 'all', 'failed' or a share between 0 and 1"),
        ("records.clients=1", r"records\.clients = 1: should be 'all', 'failed' or a share between 0 and 1"),
        ("records.clients=0.0", r"records\.clients = 0\.0: should be 'all', 'failed' or a share"),
        ("records.clients=nan", r"records\.clients = nan: should be 'all', 'failed' or a share"),
        ("records.clients=al", r"records\.clients = 'al': should be 'all', 'failed' or a share"),
        ("records.clients=true", r"records\.clients = True: should be 'all', 'failed' or a share"),
        ("records.clients=[0.5]", r"records\.clients: should be 'all', 'failed' or a share"),
        ("records.client=all", r"records\.client is not known\. Did you mean clients\?"),
        ("cohort.min_replies=0", r"cohort\.min_replies = 0: input should be greater than or equal to 1"),
        ("cohort.client_timeout=0", r"cohort\.client_timeout = 0: input should be greater than 0"),
        ("cohort.client_timeout=inf", r"cohort\.client_timeout = inf: input should be a finite number"),
        ("adversary={name='alie'}", r"adversary: give fraction or clients, one of them$"),
        ("adversary={name='alie',fractoin=0.2}", r"give fraction or clients, one of them; fractoin is neither"),
        ("adversary={name='alie',fraction=0.2,clients=[1]}", r"adversary: give fraction or clients, one of them"),
        ("adversary={name='alie',fraction=1.0}", r"adversary\.fraction = 1\.0: input should be less than 1"),
        ("adversary={name='alie',fraction=nan}", r"adversary\.fraction = nan: input should be"),
        ("adversary={name='alie',clients=[]}", r"adversary\.clients: list should have at least 1 item"),
        ("adversary={name='alie',clients=[-1]}", r"adversary\.clients\.0 = -1: input should be greater than or equal"),
        ("adversary={nmae='alie',fraction=0.2}", r"adversary\.nmae is not known\. Did you mean name\?"),
        ("strategy.combine=median", r"strategy\.combine = 'median': write it as a table: combine = \{ name"),
        ("strategy.server='fedadam'", r"strategy\.server = 'fedadam': write it as a table: server = \{ name"),
        ("strategy.combine={nmae='krum'}", r"strategy\.combine\.nmae is not known\. Did you mean name\?"),
        ("strategy.server={}", r"strategy\.server\.name is missing"),
        ("engine.bits=equal", r"engine\.bits = 'equal': input should be 'guaranteed' or 'not guaranteed'"),
    ],
)
def test_a_mistake_is_one_line_with_its_key_and_remedy(setting: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message) as caught:
        load("quickstart", [setting])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["privacy.client.clip=0"], r"privacy\.client\.clip = 0: input should be greater than 0"),
        (["privacy.client.delta=1"], r"privacy\.client\.delta = 1: input should be less than 1"),
        (["privacy.client.clipp=1"], r"privacy\.client\.clipp is not known\. Did you mean clip\?"),
        (["privacy.client.mechanism=forest"], r"mechanism = 'forest': input should be 'gaussian' or 'tree'"),
        (["privacy.client.relation=remove"], r"relation = 'remove': input should be 'zero-out' or 'replace'"),
        (["privacy.client.accountant=gdp"], r"accountant = 'gdp': input should be 'rdp', 'prv', 'pld' or 'exact'"),
        (["privacy.client.min_separation=0"], r"min_separation = 0: input should be greater than or equal to 1"),
        (["privacy.client.adaptive={quantile=1.0}"], r"adaptive\.quantile = 1\.0: input should be less than 1"),
        (["privacy.client.adaptive={rate=0.0}"], r"adaptive\.rate = 0\.0: input should be greater than 0"),
        (["privacy.client.adaptive={rat=1.0}"], r"privacy\.client\.adaptive\.rat is not known\. Did you mean rate\?"),
        (["privacy.client={delta=1e-3,clip=1.0}"], r"privacy\.client: give epsilon or noise_multiplier, one of them"),
        (["privacy.client={epsilon=1.0,clip=1.0}"], r"privacy\.client\.delta is missing"),
        (["privacy.client={epsilon=1.0,delta=1e-3}"], r"privacy\.client\.clip is missing"),
        (["privacy.local={epsilon=1.0,delta=1e-3}"], r"privacy\.local\.clip is missing"),
        ([f"privacy.local={CLIENT}"], r"privacy: give one of client and local: they protect something else"),
        (["cohort.min_replies=3"], r"cohort\.min_replies .* privacy\.client .* Leave cohort\.min_replies out"),
        (["cohort.on_client_error=fail"], r"cohort\.on_client_error .* Leave cohort\.on_client_error out"),
        (["references=['local']"], r"do not go with privacy\.client; privacy\.without runs the scenario without it"),
        (["privacy.local.accountant=rdp", "privacy.client={}"], r"privacy\.local\.accountant is not known"),
    ],
)
def test_a_mistake_in_privacy_of_clients_is_one_line_too(base: Path, settings: list[str], message: str) -> None:
    with pytest.raises(ScenarioError, match=message) as caught:
        load(str(base), [f"privacy.client={CLIENT}", *settings])
    assert "\n" not in str(caught.value)


def test_other_levels_go_with_replies_that_are_waited_for_and_with_stopping_at_an_epsilon(base: Path) -> None:
    """What a client does ends a run at local level: its upload, and whether there is one, is no secret there."""
    settings = [f"privacy.local={CLIENT}", "cohort.min_replies=3", "cohort.on_client_error=fail", "stop.epsilon=3.0"]
    assert load(str(base), settings).privacy.level == "local"
    assert load(str(base), [f"privacy.client={CLIENT}", "stop.epsilon=3.0"]).stop.epsilon == 3.0


def test_a_missing_key_is_named_with_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", BASE.replace("batch_size = 8", ""))
    with pytest.raises(ScenarioError, match=r"mine\.toml: train\.batch_size is missing"):
        load(str(path))


def test_what_only_privacy_spends_needs_privacy(base: Path) -> None:
    with pytest.raises(ScenarioError, match=r"base\.toml: stop\.epsilon needs privacy\.example"):
        load(str(base), ["stop.epsilon=3"])


@pytest.mark.parametrize(
    ("right", "typo"),
    [
        ("learning_rate", "train.learning_rat"),
        ("partition", "data.partitoin"),
        ("name", "data: nmae"),
        ("title", "titel"),
    ],
)
def test_a_typo_in_a_required_key_is_not_called_missing(base: Path, right: str, typo: str) -> None:
    path = write(base, base.read_text().replace(f"{right} = ", f"{re.split('[.: ]+', typo)[-1]} = ", 1))
    with pytest.raises(ScenarioError, match=rf"base\.toml: {typo} is not known\. Did you mean {right}\?"):
        load(str(path))


def test_without_takes_dotted_keys_and_tables_alike() -> None:
    """TOML makes a table of `train.learning_rate` where it is not quoted."""
    dotted = load("quickstart", ["privacy.without={'train.learning_rate'=0.5, rounds=3}"])
    tables = load("quickstart", ["privacy.without={train.learning_rate=0.5, rounds=3}"])
    assert dotted.privacy.changes == tables.privacy.changes == {"train.learning_rate": 0.5, "rounds": 3}


@pytest.mark.parametrize("content", [b"rounds = ", b"\xff\xfe", b"a = 1\na = 2"], ids=["cut", "no text", "twice"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ScenarioError, match=r"mine\.toml: not valid TOML"):
        load(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quickstrat", r"there is no scenario 'quickstrat'\. Did you mean quickstart\?"),
        ("no/such.toml", r"no/such\.toml: there is no such file"),
    ],
)
def test_a_scenario_that_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        load(name)


def test_keys_of_long_runs_have_defaults_and_arrive_as_written(base: Path) -> None:
    """By default every round is a checkpoint, every client is recorded, nobody is waited for or given up."""
    plain = load(str(base))
    assert (plain.checkpoint.every, plain.checkpoint.keep, plain.records.clients) == (1, 2, "all")
    assert (plain.cohort.min_replies, plain.cohort.client_timeout, plain.engine.bits) == (None, None, "guaranteed")
    settings = ["checkpoint.every=5", "records.clients=0.25", "engine.bits=not guaranteed"]
    long = load(str(base), [*settings, "cohort.min_replies=4", "cohort.client_timeout=90"])
    assert (long.checkpoint.every, long.records.clients, long.engine.bits) == (5, 0.25, "not guaranteed")
    assert (long.cohort.min_replies, long.cohort.client_timeout) == (4, 90.0)
    assert values(load(str(write(base, long.to_toml())))) == values(long)


@pytest.mark.parametrize("clients", ["all", "failed", 0.001, 0.999])
def test_records_are_of_all_of_failed_or_of_a_share_of_clients(base: Path, clients: str | float) -> None:
    assert load(str(base), [f"records.clients={clients}"]).records.clients == clients


@pytest.mark.parametrize("setting", ["cohort.min_replies=3", "cohort.client_timeout=60.0"])
def test_waiting_for_replies_goes_with_privacy(setting: str) -> None:
    assert load("quickstart", [setting]).privacy.example is not None


@pytest.mark.parametrize(
    ("cohort", "largest"),
    [({}, 5), ({"size": 3}, 3), ({"fraction": 0.5}, 2), ({"poisson": 0.1}, 5)],
    ids=["everyone", "size", "fraction", "poisson"],
)
def test_more_replies_than_a_cohort_can_give_are_refused(cohort: dict[str, Any], largest: int) -> None:
    """Of 5 clients; a Poisson cohort may be as large as the population."""
    check_cohort(small.scenario({"cohort": {**cohort, "min_replies": largest}}), 5)
    message = rf"cohort\.min_replies = {largest + 1}: a cohort here has at most {largest} of 5 clients; lower it"
    with pytest.raises(ScenarioError, match=message):
        check_cohort(small.scenario({"cohort": {**cohort, "min_replies": largest + 1}}), 5)


def test_a_strategys_parts_are_tables_with_keys_of_their_own(base: Path) -> None:
    """They are not hyper-parameters of the strategy that is named."""
    parts = 'combine = { name = "krum", f = 2 }\nserver = { name = "fedadam" }'
    strategy = derived(base, f'[strategy]\nname = "scaffold"\nserver_lr = 0.5\n{parts}').strategy
    assert strategy.settings == {"server_lr": 0.5}
    assert strategy.combine is not None and strategy.server is not None
    assert (strategy.combine.name, strategy.combine.settings) == ("krum", {"f": 2})
    assert (strategy.server.name, strategy.server.settings) == ("fedadam", {})
    assert load(str(base)).strategy.combine is None


def test_an_attack_is_a_table_with_keys_of_its_own(base: Path) -> None:
    """Another attack replaces the whole table, and listed clients replace a fraction."""
    write(base, BASE + '[adversary]\nname = "sign-flip"\nscale = 10.0\nfraction = 0.2')
    attack = load(str(base)).adversary
    assert attack is not None
    assert (attack.name, attack.fraction, attack.clients, attack.settings) == ("sign-flip", 0.2, None, {"scale": 10.0})
    listed = load(str(base), ["adversary.clients=[0, 3]"]).adversary
    assert listed is not None
    assert (listed.fraction, listed.clients, listed.settings) == (None, [0, 3], {"scale": 10.0})
    other = derived(base, '[adversary]\nname = "alie"\nclients = [1]').adversary
    assert other is not None
    assert (other.name, other.fraction, other.settings) == ("alie", None, {})


positive = st.floats(1e-6, 1e6)
alternatives = st.sampled_from(["size", "fraction", "poisson"])


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    """Plain values of a valid scenario, with tables present or absent."""
    shares = draw(st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (1.0, 0.0, 0.0)]))
    content: dict[str, Any] = {
        "title": draw(st.text()),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "rounds": draw(st.integers(1, 10**6)),
        "data": {
            "name": draw(st.text(min_size=1)),
            "partition": {"kind": "dirichlet", "clients": 3, "alpha": draw(positive)},
            "split": dict(zip(("train", "validation", "test"), shares, strict=True)),
            "path": draw(st.text()),
        },
        "model": {"name": "mlp", "hidden": draw(st.lists(st.integers(1, 99), max_size=3))},
        "train": {
            "learning_rate": draw(positive),
            "batch_size": draw(st.integers(1, 99)),
            draw(st.sampled_from(["epochs", "steps"])): draw(st.integers(1, 9)),
        },
    }
    if draw(st.booleans()):
        kind = draw(alternatives)
        content["cohort"] = {kind: 3 if kind == "size" else draw(st.floats(0.01, 1.0))}
    if draw(st.booleans()):
        level = draw(st.sampled_from(["example", "client", "local"]))
        length = "max_grad_norm" if level == "example" else "clip"
        private: dict[str, Any] = {"epsilon": draw(positive), "delta": 1e-5, length: draw(positive)}
        if level == "client" and draw(st.booleans()):
            private |= draw(st.sampled_from([{"adaptive": {"rate": 0.5}}, {"mechanism": "tree", "min_separation": 7}]))
        content["privacy"] = {level: private, "without": {"train.learning_rate": draw(positive)}}
    if draw(st.booleans()):
        who, which = draw(st.sampled_from([("fraction", 0.2), ("clients", [0, 2])]))
        content["adversary"] = {"name": draw(st.text()), "scale": draw(positive), who: which}
    part = {"name": draw(st.text()), "f": draw(st.integers(0, 9))}
    content["strategy"] = dict.fromkeys(draw(st.sets(st.sampled_from(["combine", "server"]))), part)
    return content


@given(content=contents())
def test_the_resolved_snapshot_is_the_same_scenario(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    """load(snapshot) == scenario, and a snapshot of it is the same text: every default is filled in."""
    folder = tmp_path_factory.getbasetemp()
    original = parse(content, folder, "drawn")
    again = load(str(write(folder / "snapshot.toml", original.to_toml())))
    assert values(again) == values(original)
    assert again.to_toml() == original.to_toml()


@pytest.mark.parametrize("name", shipped())
def test_snapshots_of_shipped_scenarios_stand_alone(name: str, tmp_path: Path) -> None:
    """A run folder's scenario.toml needs no other file."""
    copy = write(tmp_path / "scenario.toml", load(name).to_toml())
    assert values(load(str(copy))) == values(load(name))


def test_changed_is_load_with_the_same_settings() -> None:
    changes = {"cohort.size": 4, "train.learning_rate": math.pi}
    assert load("quickstart").changed(changes) == load("quickstart", [f"{k}={v!r}" for k, v in changes.items()])


def test_a_base_in_another_folder_keeps_its_own_files(tmp_path: Path) -> None:
    """What a file names lies beside that file, whoever extends it."""
    (shared := tmp_path / "shared").mkdir()
    (mine := tmp_path / "mine").mkdir()
    write(shared / "net.py", "")
    write(shared / "rows.csv", "")
    text = BASE.replace('"cnn"\npreset = "small"', '"net.py:net"').replace('"digits"', '"csv"\npath = "rows.csv"')
    write(shared / "base.toml", text)
    write(mine / "strategy.py", "")
    own = 'extends = "../shared/base.toml"\n[strategy]\nname = "strategy.py:mine"'
    scenario = load(str(write(mine / "mine.toml", own)))
    found = {path.resolve() for path in scenario.own_files()}
    assert found == {shared / "net.py", shared / "rows.csv", mine / "strategy.py"}
    assert (scenario.model.name, scenario.folder) == ("../shared/net.py:net", mine)
    grandchild = load(str(write(tmp_path / "third.toml", 'extends = "mine/mine.toml"')))
    assert {path.resolve() for path in grandchild.own_files()} == found


def test_attacks_and_parts_of_strategies_may_be_ones_own(tmp_path: Path) -> None:
    """Their files are found and moved as others are; `flower:NAME` is no file."""
    (shared := tmp_path / "shared").mkdir()
    for name in ("attack.py", "robust.py", "step.py", "flower"):
        write(shared / name, "")
    parts = 'combine = { name = "robust.py:rule", f = 1 }\nserver = { name = "step.py:step" }'
    attack = '[adversary]\nname = "attack.py:mine"\nfraction = 0.2'
    write(shared / "base.toml", f'{BASE}\n[strategy]\nname = "flower:FedAdam"\n{parts}\n{attack}')
    mine = load(str(write(tmp_path / "mine.toml", 'extends = "shared/base.toml"')))
    assert {path.name for path in mine.own_files()} == {"attack.py", "robust.py", "step.py"}
    assert mine.adversary is not None and mine.strategy.combine is not None
    assert (mine.adversary.name, mine.strategy.name) == ("shared/attack.py:mine", "flower:FedAdam")
    assert (mine.strategy.combine.name, mine.strategy.combine.settings) == ("shared/robust.py:rule", {"f": 1})


def test_own_files_are_those_that_the_scenario_names_and_that_exist(tmp_path: Path) -> None:
    write(tmp_path / "net.py", "")
    write(tmp_path / "rows.csv", "")
    text = BASE.replace('"cnn"\npreset = "small"', '"net.py:net"').replace('"digits"', '"csv"\npath = "rows.csv"')
    mine = load(str(write(tmp_path / "mine.toml", text)))
    assert set(mine.own_files()) == {tmp_path / "rows.csv", tmp_path / "net.py"}


def test_a_file_named_by_set_lies_beside_the_scenario_or_else_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who types a command names files of the folder he stands in; a scenario's own files never depend on it."""
    (here := tmp_path / "here").mkdir()
    (there := tmp_path / "there").mkdir()
    for file in (here / "both.py", there / "both.py", here / "mine.py", here / "rows.csv", here / "absent.py"):
        write(file, "")
    monkeypatch.chdir(here)
    path = str(write(there / "base.toml", BASE.replace('"cnn"\npreset = "small"', '"absent.py:net"')))
    settings = ["strategy={name='mine.py:mine',rate=1}", "data.path=rows.csv", "data.name=csv"]
    scenario = load(path, [*settings, "references=['both.py:one', 'mine.py:two', 'fedavg', 'gone.py:three']"])
    assert scenario.strategy.model_dump() == {"name": f"{here}/mine.py:mine", "rate": 1, **NO_PARTS}
    assert scenario.references == ["both.py:one", f"{here}/mine.py:two", "fedavg", "gone.py:three"]
    assert scenario.model.name == "absent.py:net"
    assert set(scenario.own_files()) == {here / "mine.py", here / "rows.csv", there / "both.py"}


NO_PARTS = {"combine": None, "server": None}
