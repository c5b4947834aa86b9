"""How indicators are asked for, and what is said to those who ask wrongly."""

from __future__ import annotations

import pickle

import pandas as pd
import pytest

import marketdata
from marketdata.errors import RequestError
from marketdata.indicators import DEFAULT, UNBOUNDED, listing, resolve
from marketdata.indicators.catalogue import CATALOGUE


def columns(specs: object) -> list[str]:
    return [c for indicator in resolve(specs) for c in indicator.columns]  # type: ignore[arg-type]


def test_nothing_asked_is_the_default_set():
    assert resolve() == resolve(None) == DEFAULT
    assert columns(None) == [
        "rsi_14",
        "rsi_9",
        "sma_10",
        "sma_20",
        "sma_50",
        "sma_200",
        "ema_10",
        "ema_20",
        "ema_50",
        "macd_12_26_9",
        "macd_12_26_9_signal",
        "macd_12_26_9_hist",
        "bbands_20_2_upper",
        "bbands_20_2_middle",
        "bbands_20_2_lower",
    ]
    assert resolve([]) == ()


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("rsi_14", ["rsi_14"]),
        ("rsi", ["rsi_14"]),
        (" RSI_14 ", ["rsi_14"]),
        ("Rsi_14", ["rsi_14"]),
        ("macd_12_26_9", ["macd_12_26_9", "macd_12_26_9_signal", "macd_12_26_9_hist"]),
        ("macd_5_35", ["macd_5_35_9", "macd_5_35_9_signal", "macd_5_35_9_hist"]),
        ("bbands_20_2.0", ["bbands_20_2_upper", "bbands_20_2_middle", "bbands_20_2_lower"]),
        ("bbands_20_2.5_lower", ["bbands_20_2.5_lower"]),
        ("macd_12_26_9_hist", ["macd_12_26_9_hist"]),
        ("atr_14", ["atr_14"]),
        ("vwap", ["vwap"]),
        ("relative_volume_20", ["relative_volume_20"]),
        ("stoch_14_3_3", ["stoch_14_3_3_stochk", "stoch_14_3_3_stochd"]),
        ("adx_14", ["adx_14", "adx_14_dmp", "adx_14_dmn"]),
        ("BBU_20_2.0", ["bbands_20_2_upper"]),
        ("BBL_20_2.5_2.5", ["bbands_20_2.5_lower"]),
        ("MACDh_12_26_9", ["macd_12_26_9_hist"]),
        ("STOCHd_14_3_3", ["stoch_14_3_3_stochd"]),
        ("DMN_14", ["adx_14_dmn"]),
        ("ATRr_14", ["atr_14"]),
        ("CCI_20_0.015", ["cci_20"]),
        ("TRUERANGE_1", ["true_range"]),
        ("VWAP_D", ["vwap"]),
        ("OBV", ["obv"]),
        ({"rsi": {"length": 9}}, ["rsi_9"]),
        ({"rsi": 9}, ["rsi_9"]),
        ({"rsi": None}, ["rsi_14"]),
        ({"macd": [5, 35]}, ["macd_5_35_9", "macd_5_35_9_signal", "macd_5_35_9_hist"]),
        ({"sma": {}, "ema": {"length": 5}}, ["sma_20", "ema_5"]),
        (
            {"bbands": {"length": 20, "std": 2.5}},
            ["bbands_20_2.5_upper", "bbands_20_2.5_middle", "bbands_20_2.5_lower"],
        ),
        (["rsi_14", {"sma": {"length": 10}}], ["rsi_14", "sma_10"]),
        (("rsi_14", "RSI_14", {"rsi": 14}), ["rsi_14"]),
        (
            ["BBU_20_2.0", "bbands_20_2"],
            ["bbands_20_2_upper", "bbands_20_2_middle", "bbands_20_2_lower"],
        ),
        # pandas-ta's own
        ("kama_10_2_30", ["kama_10_2_30"]),
        ("KAMA_10_2_30", ["kama_10_2_30"]),
        ("kdj_9_3", ["kdj_9_3_k", "kdj_9_3_d", "kdj_9_3_j"]),
        ("kc_20_2", ["kc_20_2_kcle", "kc_20_2_kcbe", "kc_20_2_kcue"]),
        ("squeeze_pro", None),
        ("cdl_pattern_doji", ["cdl_pattern_doji"]),
        ("CDL_DOJI", ["cdl_pattern_doji"]),
        ("SUPERT_7_3.0", ["supertrend_7_multiplier=3_supert"]),
        ("PSARl_0.02_0.2", ["psar_0.02_max_af=0.2_psarl"]),
        ("AROONU_14", ["aroon_14_aroonu"]),
        ({"hma": {"length": 30, "mamode": "sma"}}, ["hma_30_sma"]),
        ({"kama": {"fast": 3}}, ["kama_fast=3"]),
        ({"rsi": {"length": 14, "mamode": "ema"}}, ["rsi_14_mamode=ema"]),
        ("rsi_14_mamode=ema", ["rsi_14_mamode=ema"]),
    ],
    ids=str,
)
def test_names_lead_to_columns(spec, wanted):
    if wanted is not None:
        assert columns(spec) == wanted
    for indicator in resolve(spec):
        (again,) = resolve(indicator.name)
        assert again.name == indicator.name
        assert set(indicator.columns) <= set(again.columns)
        assert pickle.loads(pickle.dumps(indicator)) == indicator


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("rsx2_14", r"unknown indicator 'rsx2_14'.*did you mean rsx"),
        ("bolinger_20", r"unknown indicator.*lists them"),
        ("relative_volum_20", "did you mean relative_volume"),
        ("", "unknown indicator"),
        ("_14", "unknown indicator"),
        ({"mcad": {"fast": 3}}, "did you mean .*macd"),
        ("rsi_x", r"length of rsi must be a whole number, not 'x'.*write 'rsi_14' or"),
        ("rsi_14.5", "must be a whole number"),
        ("rsi_0", "must be from 2 to 10000"),
        ("sma_99999", "must be from 1 to 10000"),
        ("bbands_20_-1", "must be from 0"),
        ({"rsi": {"length": True}}, "must be a whole number, not True"),
        ({"rsi": {"length": float("nan")}}, "must be a whole number"),
        ({"rsi": {"len": 3}}, r"rsi has no parameter 'len'.*'length': 14"),
        ("macd_26_12_9", r"fast \(26\) must be below slow \(12\)"),
        ("RSI_14_2_9_9_9", "parameters"),
        ({"rsi_14": {"length": 14}}, "beside"),
        ({3: {}}, "name is a string"),
        (3, "not int"),
        ([3], "not int"),
        ("kama_0", "length must be a whole number from 1"),
        ("kc_20_0", "scalar must be a number above 0"),
        ("kc_20_2_true_foo", "mamode must be one of dema ema"),
        ("kama_fast=3_10", "is not understood"),
        ("kama_speed=3", "is not understood"),
        ({"kama": {"speed": 3}}, r"'speed' is none of its parameters.*length, fast, slow"),
        ("kama_10_2_30_sma_1_0_7", "takes 6 parameters"),
        ("bbands_20_2_foo", "upper_std must be a number"),
        # what would look ahead
        ("zigzag", "looks ahead"),
        ("tos_stdevall", "looks ahead"),
        ("vhm", "looks ahead"),
        ("dpo_20_true", "must not look ahead"),
        ({"ichimoku": {"include_chikou": True}}, "must not look ahead"),
        ("ICS_26", "later close"),
        ({"sma": {"length": 5, "offset": -1}}, "offset must be a whole number from 0"),
        ("long_run", "two other indicators"),
        ({"vwap": {"anchor": "W"}}, "anchor is D"),
    ],
    ids=str,
)
def test_what_cannot_be_right_is_refused_with_a_cure(spec, said):
    with pytest.raises(RequestError, match=f"(?s){said}") as caught:
        resolve(spec)
    assert caught.value.cure
    assert not caught.value.transient
    assert caught.value.cure != RequestError.default_cure


def test_indicators_are_values():
    (one,), (same,), (part,) = resolve("BBANDS_20_2"), resolve({"bbands": {}}), resolve("BBU_20_2")
    assert one == same
    assert hash(one) == hash(same)
    assert one != part
    assert one != "bbands_20_2"
    assert repr(part) == "Indicator(bbands_20_2_upper)"


def test_every_definition_says_what_it_is():
    table = listing()
    assert table.name.is_unique
    assert set(CATALOGUE) <= set(table.name)
    assert len(table) > 140
    ours = table[table.kernel != "pandas-ta"]
    assert set(ours.kernel) == {"talib", "own"}
    assert (ours.formula.str.len() > 10).all()
    assert (ours.source.str.len() > 10).all()
    assert ours.lookback.notna().all()
    assert list(ours[ours.stabilisation.isna()].name) == ["obv", "ad"]
    for row in ours.itertuples():
        (indicator,) = resolve(str(row.example))
        assert indicator.name == row.example
        assert " ".join(indicator.columns) == row.outputs
        assert indicator.lookback == row.lookback
    others = table[table.kernel == "pandas-ta"]
    assert (others.source.str.contains("talib=False")).all()


def test_the_library_lists_them():
    frame = marketdata.indicators(pandas_ta=False)
    pd.testing.assert_frame_equal(frame, listing(pandas_ta=False))


def test_unbounded_is_beyond_any_series():
    (obv,) = resolve("obv")
    assert obv.stabilisation == UNBOUNDED > 10**8
