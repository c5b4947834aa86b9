"""From what is stored of an algorithm to the object, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from algorithms import costs as cost_models
from algorithms.algorithm import Algorithm
from algorithms.blotter import Costs
from algorithms.errors import ParameterError
from algorithms.live.records import Claim, Registration
from algorithms.live.risk import RiskLimits
from algorithms.loader import find_algorithm

_SETTINGS: Final = ("symbols", "timeframe", "timeframes", "fractional", "adjustment", "session")
_FEES: Final = ("NoFees", "PerShare", "Percent")
_SLIPPAGE: Final = ("NoSlippage", "BasisPoints", "VolumeShare")


def registration_of(
    algorithm: Algorithm,
    source: str,
    *,
    name: str | None = None,
    cash: float = 100_000.0,
    venue: str = "paper",
    limits: RiskLimits | None = None,
    costs: Costs | None = None,
) -> Registration:
    """Return what the journal keeps of an algorithm, so that `make` can make it again.

    Parameters
    ----------
    source : str
        As `algorithms.loader.find_algorithm` takes it; a file's path is made absolute.
    """
    place, _, kind = source.rpartition(":") if ":" in source else (source, "", "")
    if place.endswith(".py"):
        source = f"{Path(place).resolve()}:{kind or type(algorithm).__name__}"
    settings = {key: _plain(getattr(algorithm, key)) for key in _SETTINGS}
    return Registration(
        name=name or algorithm.name,
        source=source,
        symbols=tuple(algorithm.symbols),
        timeframe=algorithm.timeframe,
        params=dict(algorithm.params),
        venue=venue,
        cash=cash,
        options={
            "settings": settings,
            "limits": asdict(limits or RiskLimits()),
            "costs": _costs_record(costs or Costs()),
        },
    )


def make(claim: Claim) -> tuple[Algorithm, Costs]:
    """Return the algorithm that a registration describes, and what trading costs it."""
    registration = claim.record.registration
    settings: Mapping[str, Any] = registration.options.get("settings", {})
    cls = find_algorithm(registration.source)
    given = {"symbols": registration.symbols, "timeframe": registration.timeframe, **settings}
    algorithm = cls(**given, **registration.params, name=registration.name)
    return algorithm, _costs_of(registration.options.get("costs", {}))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def _costs_record(costs: Costs) -> dict[str, Any]:
    return {
        "fees": _model_record(costs.fees, _FEES),
        "slippage": _model_record(costs.slippage, _SLIPPAGE),
        "leverage": costs.leverage,
    }


def _model_record(model: Any, known: tuple[str, ...]) -> dict[str, Any]:
    name = type(model).__name__
    if name not in known or type(model).__module__ != cost_models.__name__:
        raise ParameterError(
            f"{name} cannot be kept in the journal", cure=f"use one of {', '.join(known)}"
        )
    return {"model": name, **asdict(model)}


def _costs_of(record: Mapping[str, Any]) -> Costs:
    given: dict[str, Any] = {}
    for key, known in (("fees", _FEES), ("slippage", _SLIPPAGE)):
        told = dict(record.get(key) or {})
        if not told:
            continue
        name = told.pop("model", "")
        if name not in known:
            raise ParameterError(f"there is no model of {key} {name!r}", cure=", ".join(known))
        given[key] = getattr(cost_models, name)(**told)
    if "leverage" in record:
        given["leverage"] = record["leverage"]
    return Costs(**given)
