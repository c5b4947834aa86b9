"""The companies of the generated market. The names are familiar; every number is made up.

Prices are today's level in today's shares. Any symbol of the form ``S`` + four or five digits or
``SIM`` + digits exists as well, so that tests can have ten thousand symbols.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Final

SIMULATED: Final = re.compile(r"S\d{4,5}|SIM\d{1,6}")


@dataclass(frozen=True, slots=True)
class Listing:
    """One company or fund of the generated market."""

    symbol: str
    name: str
    exchange: str
    price: float
    """Typical price, dollars a share of today."""
    volume: float
    """Shares traded on a typical day."""
    volatility: float = 0.018
    """Standard deviation of a day's move."""
    dividend: float = 0.0
    """Yearly cash dividend as a fraction of the price, paid in quarters."""
    listed: date = date(1990, 1, 2)
    splits: tuple[tuple[date, float, float], ...] = ()
    """(ex-date, new, old)"""
    kind: str = "EQUITY"


_ROWS: Final = """
AAPL  |Apple            |NASDAQ|190 |52e6 |.017|.005|1990-01-02|2014-06-09 7:1,2020-08-31 4:1
MSFT  |Microsoft        |NASDAQ|410 |21e6 |.015|.008|1990-01-02|2003-02-18 2:1
NVDA  |NVIDIA           |NASDAQ|125 |210e6|.030|.001|1999-01-22|2021-07-20 4:1,2024-06-10 10:1
GOOGL |Alphabet A       |NASDAQ|165 |25e6 |.018|.004|2004-08-19|2022-07-18 20:1
GOOG  |Alphabet C       |NASDAQ|166 |18e6 |.018|.004|2014-03-27|2022-07-18 20:1
AMZN  |Amazon           |NASDAQ|185 |42e6 |.020|0   |1997-05-15|2022-06-06 20:1
META  |Meta Platforms   |NASDAQ|520 |14e6 |.023|.004|2012-05-18|
TSLA  |Tesla            |NASDAQ|240 |95e6 |.034|0   |2010-06-29|2020-08-31 5:1,2022-08-25 3:1
AVGO  |Broadcom         |NASDAQ|170 |24e6 |.024|.012|2009-08-06|2024-07-15 10:1
NFLX  |Netflix          |NASDAQ|105 |34e6 |.024|0   |2002-05-23|2015-07-15 7:1,2025-11-17 10:1
AMD   |AMD              |NASDAQ|150 |48e6 |.032|0   |1990-01-02|
INTC  |Intel            |NASDAQ|30  |55e6 |.022|.016|1990-01-02|
CSCO  |Cisco            |NASDAQ|50  |18e6 |.014|.032|1990-02-16|
ORCL  |Oracle           |NYSE  |140 |9e6  |.018|.011|1990-01-02|
ADBE  |Adobe            |NASDAQ|480 |3e6  |.020|0   |1990-01-02|
CRM   |Salesforce       |NYSE  |270 |6e6  |.020|.006|2004-06-23|
QCOM  |Qualcomm         |NASDAQ|170 |8e6  |.020|.020|1991-12-13|
TXN   |Texas Instruments|NASDAQ|195 |5e6  |.017|.027|1990-01-02|
PYPL  |PayPal           |NASDAQ|68  |13e6 |.024|0   |2015-07-06|
UBER  |Uber             |NYSE  |72  |18e6 |.026|0   |2019-05-10|
ABNB  |Airbnb           |NASDAQ|135 |5e6  |.025|0   |2020-12-10|
COIN  |Coinbase         |NASDAQ|220 |9e6  |.045|0   |2021-04-14|
PLTR  |Palantir         |NASDAQ|60  |60e6 |.038|0   |2020-09-30|
RIVN  |Rivian           |NASDAQ|13  |35e6 |.045|0   |2021-11-10|
ARM   |Arm Holdings     |NASDAQ|135 |8e6  |.036|0   |2023-09-14|
RDDT  |Reddit           |NYSE  |110 |6e6  |.045|0   |2024-03-21|
JPM   |JPMorgan Chase   |NYSE  |205 |9e6  |.014|.022|1990-01-02|
BAC   |Bank of America  |NYSE  |39  |38e6 |.016|.026|1990-01-02|
WFC   |Wells Fargo      |NYSE  |57  |16e6 |.016|.026|1990-01-02|
C     |Citigroup        |NYSE  |62  |14e6 |.018|.034|1990-01-02|2011-05-09 1:10
GS    |Goldman Sachs    |NYSE  |480 |2.2e6|.016|.022|1999-05-04|
MS    |Morgan Stanley   |NYSE  |100 |7e6  |.017|.035|1993-02-23|
V     |Visa             |NYSE  |275 |7e6  |.013|.008|2008-03-19|2015-03-19 4:1
MA    |Mastercard       |NYSE  |470 |2.6e6|.014|.006|2006-05-25|2014-01-22 10:1
BRK.B |Berkshire B      |NYSE  |440 |3.6e6|.011|0   |1996-05-09|2010-01-21 50:1
BRK.A |Berkshire A      |NYSE  |660000|2e3|.011|0   |1990-01-02|
BF.B  |Brown-Forman B   |NYSE  |45  |1.8e6|.013|.019|1990-01-02|
KO    |Coca-Cola        |NYSE  |63  |13e6 |.009|.030|1990-01-02|2012-08-13 2:1
PEP   |PepsiCo          |NASDAQ|170 |5e6  |.010|.031|1990-01-02|
PG    |Procter & Gamble |NYSE  |165 |6e6  |.010|.024|1990-01-02|2004-06-21 2:1
JNJ   |Johnson & Johnson|NYSE  |155 |6e6  |.010|.031|1990-01-02|
UNH   |UnitedHealth     |NYSE  |520 |3.2e6|.015|.015|1990-01-02|
PFE   |Pfizer           |NYSE  |28  |32e6 |.013|.060|1990-01-02|
MRK   |Merck            |NYSE  |120 |9e6  |.012|.025|1990-01-02|
XOM   |Exxon Mobil      |NYSE  |115 |15e6 |.014|.033|1990-01-02|
CVX   |Chevron          |NYSE  |155 |8e6  |.014|.042|1990-01-02|
WMT   |Walmart          |NYSE  |70  |16e6 |.011|.012|1990-01-02|2024-02-26 3:1
COST  |Costco           |NASDAQ|860 |1.9e6|.013|.005|1990-01-02|
HD    |Home Depot       |NYSE  |370 |3.3e6|.014|.024|1990-01-02|
MCD   |McDonald's       |NYSE  |275 |3.2e6|.010|.024|1990-01-02|
DIS   |Walt Disney      |NYSE  |95  |10e6 |.016|.009|1990-01-02|
BA    |Boeing           |NYSE  |175 |7e6  |.023|0   |1990-01-02|
CAT   |Caterpillar      |NYSE  |345 |2.8e6|.017|.016|1990-01-02|
GE    |General Electric |NYSE  |165 |5e6  |.019|.007|1990-01-02|2021-08-02 1:8
IBM   |IBM              |NYSE  |190 |4e6  |.013|.035|1990-01-02|
T     |AT&T             |NYSE  |20  |34e6 |.012|.055|1990-01-02|
VZ    |Verizon          |NYSE  |41  |17e6 |.011|.065|1990-01-02|
F     |Ford             |NYSE  |11  |52e6 |.020|.055|1990-01-02|
GME   |GameStop         |NYSE  |22  |9e6  |.055|0   |2002-02-13|2022-07-22 4:1
SPY   |S&P 500 ETF      |ARCA  |550 |60e6 |.010|.013|1993-01-29||ETF
QQQ   |Nasdaq 100 ETF   |NASDAQ|475 |38e6 |.013|.006|1999-03-10|2000-03-20 2:1|ETF
IWM   |Russell 2000 ETF |ARCA  |210 |28e6 |.014|.012|2000-05-26||ETF
DIA   |Dow 30 ETF       |ARCA  |400 |3e6  |.009|.017|1998-01-20||ETF
GLD   |Gold ETF         |ARCA  |230 |7e6  |.009|0   |2004-11-18||ETF
TLT   |Treasury 20Y ETF |NASDAQ|95  |32e6 |.010|.038|2002-07-30||ETF
UGA   |Gasoline ETF     |ARCA  |62  |28e3 |.019|0   |2008-02-26||ETF
PPLT  |Platinum ETF     |ARCA  |90  |85e3 |.014|0   |2010-01-08||ETF
"""


def _listing(row: str) -> Listing:
    fields = [f.strip() for f in row.split("|")]
    symbol, name, exchange, price, volume, volatility, dividend, listed, splits = fields[:9]
    return Listing(
        symbol,
        name,
        exchange,
        float(price),
        float(volume),
        float(volatility),
        float(dividend),
        date.fromisoformat(listed),
        tuple(_split(s) for s in splits.split(",") if s),
        fields[9] if len(fields) > 9 else "EQUITY",
    )


def _split(text: str) -> tuple[date, float, float]:
    day, _, ratio = text.partition(" ")
    new, _, old = ratio.partition(":")
    return date.fromisoformat(day), float(new), float(old)


BUILT_IN: Final = {x.symbol: x for x in map(_listing, _ROWS.strip().splitlines())}

_SPLIT_DAYS: Final = (date(2021, 6, 14), date(2022, 9, 12), date(2023, 11, 6), date(2024, 8, 5))
_YOUNG: Final = (date(2022, 3, 9), date(2023, 6, 15), date(2024, 10, 3), date(2025, 2, 11))


def listing_of(symbol: str) -> Listing | None:
    """Return the listing of a built-in or simulated symbol, or None where it does not exist.

    One simulated symbol in ten is young, one in ten has split, one in three pays dividends.
    """
    found = BUILT_IN.get(symbol)
    if found is not None or not SIMULATED.fullmatch(symbol):
        return found
    number = int(symbol.lstrip("SIM"))
    scatter = number * 2654435761 % 2**32 / 2**32
    young = number % 10 == 3
    splits: tuple[tuple[date, float, float], ...] = ()
    if number % 10 == 7:
        new, old = ((2.0, 1.0), (3.0, 1.0), (1.0, 10.0), (4.0, 1.0))[number // 10 % 4]
        splits = ((_SPLIT_DAYS[number // 40 % 4], new, old),)
    return Listing(
        symbol,
        f"Simulated {number}",
        "NASDAQ" if number % 2 else "NYSE",
        round(5 + 250 * scatter**2, 2),
        round(10 ** (4.3 + 2.7 * (number * 40503 % 997) / 997)),
        0.012 + 0.02 * scatter,
        0.02 if number % 3 == 0 else 0.0,
        _YOUNG[number // 10 % 4] if young else date(2005, 1, 3),
        splits,
    )
