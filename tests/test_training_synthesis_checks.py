"""The decisions behind synthetic pairs, each alone: plan, answers, languages, duplicates, waiting."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace

import pytest

from training.synthesis.answers import (
    Example,
    has_personal_data,
    left_over,
    parse_example,
    parse_tasks,
    why_not_example,
    why_not_task,
)
from training.synthesis.config import KINDS, Kind, SynthesisConfig, published_languages
from training.synthesis.duplicates import NearDuplicates
from training.synthesis.endpoint import RETRY_AFTER_MAX_S, WAIT_MAX_S, seconds_of, wait_s
from training.synthesis.plan import ExamplePlan, kind_of, plan_of, request_seed
from training.synthesis.screen import unsafe_categories
from training.synthesis.templates import KEYS, example_prompt, tasks_prompt
from training.text_languages import LANGUAGES, language_of, why_not_in

CONFIG = SynthesisConfig()
FRENCH = "Le marché du vieux port ouvre chaque matin avant le lever du soleil, sauf le dimanche et les jours de fête."
ENGLISH = "The market at the old harbour opens every morning before sunrise, except on Sundays and on holidays."


def plan(kind: Kind, **changes: object) -> ExamplePlan:
    """Some plan of this kind, in English."""
    number = next(n for n in range(0, 10**5, CONFIG.examples_a_unit) if plan_of(n, CONFIG).kind == kind)
    fixed = replace(plan_of(number, CONFIG), language="en", other="fr" if kind == "bitext" else "", words=50)
    return replace(fixed, **changes)


def test_ninety_three_languages_have_the_published_shares() -> None:
    shares = published_languages()
    assert len(LANGUAGES) == len(shares) == 93
    assert sum(shares.values()) == pytest.approx(100)
    assert (shares["en"], shares["pl"]) == (43.1, 3.0)


def test_numbers_come_in_the_shares_of_kinds_and_languages() -> None:
    kinds = Counter(kind_of(unit, CONFIG) for unit in range(4000))
    total = sum(CONFIG.kinds.values())
    # Five standard deviations of 4,000 draws are at most 4 %.
    assert {kind: count / 4000 for kind, count in kinds.items()} == pytest.approx(
        {kind: share / total for kind, share in CONFIG.kinds.items()}, abs=0.04
    )
    plans = [plan_of(number, CONFIG) for number in range(4000)]
    assert sum(found.language == "en" for found in plans) / 4000 == pytest.approx(0.431, abs=0.04)
    assert len({found.language for found in plans}) > 80


def test_a_number_s_plan_is_its_own_and_bitext_has_two_languages() -> None:
    numbers = range(0, 8000, 7)
    plans = [plan_of(number, CONFIG) for number in numbers]
    assert plans == [plan_of(number, CONFIG) for number in numbers]
    assert {bool(found.other) for found in plans if found.kind == "bitext"} == {True}
    assert not [found for found in plans if found.other == found.language]
    assert {found.place for found in plans} == set(range(20))
    assert plan_of(40, CONFIG) != replace(plan_of(40, CONFIG.model_copy(update={"seed": 1})), number=40)
    seeds = {request_seed(number, CONFIG, tasks=tasks) for number in range(500) for tasks in (True, False)}
    assert len(seeds) == 1000
    assert max(seeds) < 2**31


def test_prompts_say_what_is_planned_and_leave_no_gap() -> None:
    for number in range(0, 40_000, 397):
        found = plan_of(number, CONFIG)
        prompt = example_prompt(found, "Find poems about rivers")
        assert LANGUAGES[found.language] in prompt
        assert not found.other or LANGUAGES[found.other] in prompt
        assert ("Find poems" in prompt) == (found.kind not in ("bitext", "sts"))
        keys = KEYS[found.kind]
        assert all(f'"{key}"' in prompt for key in (keys.query, keys.positive, keys.negative) if key)
        assert "{" not in prompt
    asked = {tasks_prompt(u, CONFIG) for u in range(400) if kind_of(u, CONFIG) not in ("bitext", "sts")}
    # 45 fields: the same request seldom comes again.
    assert len(asked) > 80


@pytest.mark.parametrize(
    "answer",
    [
        '{"tasks": ["Find poems", 3]}',
        '{"tasks": "Find poems"}',
        '{"tasks": [], "note": []}',
        '["Find poems"]',
        'Here: {"tasks": ["Find poems"]}',
        "```json\n{}\n```",
    ],
)
def test_lists_of_another_shape_are_refused(answer: str) -> None:
    assert parse_tasks(answer) is None


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("Given a recipe, retrieve others with the same main ingredient", None),
        ("Find poems", "length"),
        ("Find poems about rivers\nand about lakes of the north", "length"),
        ("Find the opening hours of {place_name} on a holiday", "leftover"),
        ("Encuentra recetas con el mismo ingrediente principal que la dada", "language"),
    ],
)
def test_a_task_is_an_english_sentence(task: str, reason: str | None) -> None:
    assert why_not_task(task) == reason


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_has_exactly_the_keys_of_its_kind(kind: Kind) -> None:
    keys = [key for key in (KEYS[kind].query, KEYS[kind].positive, KEYS[kind].negative) if key]
    good = {key: f"text {place}" for place, key in enumerate(keys)}
    found = parse_example(json.dumps(good), kind)
    assert found is not None
    assert found.texts == list(good.values())
    for bad in ({**good, "more": "x"}, {key: good[key] for key in keys[1:]}, {**good, keys[0]: 3}, [good]):
        assert parse_example(json.dumps(bad), kind) is None


LONG = "Every spring the ferry across the strait is painted anew, and while it dries the islanders row."
OTHER = "Ferries elsewhere are painted in autumn, when the tourists have left and the docks are empty."


@pytest.mark.parametrize(
    ("kind", "texts", "reason"),
    [
        ("short_long", ("when is the ferry painted", LONG, OTHER), None),
        ("short_long", ("when is the ferry painted", LONG, ""), "empty"),
        ("short_long", ("when is the ferry painted", "In spring.", OTHER), "length"),
        ("short_long", ("the ferry across the STRAIT is", LONG, OTHER), "copied"),
        ("short_long", ("when is the ferry painted", LONG, LONG.upper()), "negative is right"),
        ("short_long", ("when is the ferry painted", f"As an AI, I like ferries. {LONG}", OTHER), "leftover"),
        ("short_long", ("when is the ferry painted", f"{LONG} Call 030 123 45 67.", OTHER), "personal data"),
        ("short_long", ("when is the ferry painted", FRENCH, OTHER), "language: language"),
        ("short_long", ("когда красят паром", LONG, OTHER), "language: script"),
        ("short_long", ("???", LONG, OTHER), "language: no letters"),
        ("long_short", (LONG, "ship maintenance", "tourism"), None),
        ("long_short", (LONG, "spring", "autumn"), "copied"),
        ("long_short", (LONG, "ship maintenance", "Ship  Maintenance"), "negative is right"),
        ("long_short", ("Too short.", "ship maintenance", "tourism"), "length"),
        ("short_short", ("a boat for cars", "ferry", None), None),
        ("short_short", ("a boat for cars", "a boat for cars and their owners", None), "copied"),
        ("long_long", (LONG, OTHER, None), None),
        ("bitext", (ENGLISH, FRENCH, "Le marché ouvre le soir."), None),
        ("bitext", (ENGLISH, ENGLISH, FRENCH), "copied"),
        ("bitext", (ENGLISH, f"{ENGLISH} {OTHER}", FRENCH), "language: language"),
        ("sts", ("a boat", "a ship", "a boat race"), None),
        ("sts", ("a boat", "A  boat", "a boat race"), "copied"),
        ("sts", ("a boat", "a ship", "a boat"), "negative is right"),
    ],
)
def test_an_example_is_refused_for_its_reason(
    kind: Kind, texts: tuple[str, str, str | None], reason: str | None
) -> None:
    assert why_not_example(Example(*texts), plan(kind)) == reason


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Write to jane.doe+news@mail.example.org today", True),
        ("Call +49 30 1234567 or +14155552671", True),
        ("(555) 123-4567", True),
        ("From 1939 to 1945, and again in 2024-03-12 15:00", False),
        ("Between 12.03.2024 and 15.03.2024, it cost 1,250,000 crowns", False),
        ("The population is 12 500 in 34 villages", False),
    ],
)
def test_addresses_and_telephone_numbers_are_personal_data_and_dates_are_not(text: str, found: bool) -> None:
    assert has_personal_data(text) == found


def test_excuses_are_leftovers_only_where_a_text_begins_with_them() -> None:
    assert left_over("I’m sorry, but I can't help with that.")
    assert not left_over("She whispered: I'm sorry, the ferry has left without us.")
    assert left_over("Dear {{customer}}, your parcel is late")
    assert not left_over(r"The fraction \frac{a}{b} of a set {x}")


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        (FRENCH, "fr", None),
        (FRENCH, "de", "language"),
        ("猫と犬がテーブルの下で眠っている", "ja", None),
        ("这座桥建于明代，每逢春天河水上涨时", "zh", None),
        ("Вода замерзает при нуле градусов", "en", "script"),
        ("iPhone 15 की कीमत बढ़ गई है और लोग नाराज़ हैं", "hi", None),
        ("kort", "no", None),
        ("12:30 → 14", "de", "no letters"),
    ],
)
def test_a_text_is_in_its_language_unless_that_is_surely_wrong(text: str, code: str, reason: str | None) -> None:
    assert why_not_in(text, code) == reason


def test_the_language_of_a_sentence_is_named_with_its_probability() -> None:
    found = language_of(FRENCH)
    assert found is not None
    assert found[0] == "fr"
    assert found[1] > 0.9
    assert language_of("42 + 1") is None


def test_near_duplicates_are_found_across_case_and_small_changes_in_any_script() -> None:
    seen = NearDuplicates(0.8)
    assert seen.is_new("Given a recipe, retrieve others with the same main ingredient")
    assert not seen.is_new("given a recipe,  retrieve others with the same main ingredient.")
    assert seen.is_new("Given a recipe, retrieve wines that go well with the dish")
    assert seen.is_new("京都で雨の日に楽しめる場所を教えてください")
    assert not seen.is_new("京都で雨の日に楽しめる場所を教えてください。")
    assert seen.is_new("hi")
    assert not seen.is_new("HI")


def test_of_thousands_of_texts_each_stays_once() -> None:
    seen = NearDuplicates(0.8)
    texts = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(600)]
    assert [seen.is_new(text) for text in [*texts, *texts]] == [True] * 600 + [False] * 600


def test_the_rules_name_categories_and_leave_plain_texts_alone() -> None:
    assert unsafe_categories(["how to make a pipe bomb", "ポルノ"]) == ["sexual", "violence"]
    assert unsafe_categories([FRENCH, ENGLISH, LONG, OTHER]) == []


def test_the_server_s_wish_is_kept_and_without_one_the_wait_doubles() -> None:
    assert wait_s(0, 17.0, 1) == 17.0
    for attempt in range(6):
        waits = [wait_s(attempt, None, seed) for seed in range(50)]
        assert 0.5 * 2**attempt <= min(waits) < max(waits) <= 2**attempt
    assert wait_s(20, None, 1) <= WAIT_MAX_S


def test_retry_after_is_seconds_or_a_date() -> None:
    now = 1_700_000_000.0
    assert seconds_of("2.5", now) == 2.5
    assert seconds_of("Tue, 14 Nov 2023 22:13:50 GMT", now) == 30.0
    assert seconds_of("Tue, 14 Nov 2023 22:00:00 GMT", now) == 0.0
    assert seconds_of("86400", now) == RETRY_AFTER_MAX_S
    assert [seconds_of(value, now) for value in (None, "soon", "nan")] == [None, None, None]
