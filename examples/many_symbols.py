"""A year of daily closes of several stocks as one matrix, and what they did together.

Shows     many symbols in one call, field="close", split adjustment, missing="skip"
Needs     marketdata with a broker to ask: keys for Alpaca, a network for Yahoo, or the sandbox
Run       MARKETDATA_BROKER=sandbox MARKETDATA_HOME=./try-marketdata \
          MARKETDATA_CLOCK=2024-06-20T15:00:30-04:00 python examples/many_symbols.py
Prints    (with that run line; the prices are SIMULATED)

    252 sessions x 6 symbols; left out: NOSUCH
             year  volatility  with AAPL
    symbol
    AAPL    0.923       0.340      1.000
    MSFT   -0.107       0.292     -0.078
    NVDA    0.866       0.555      0.131
    AMZN    1.053       0.355     -0.054
    JPM    -0.165       0.241     -0.007
    KO      0.159       0.160      0.070
    SIMULATED prices
"""

import warnings

import marketdata as md

SYMBOLS = ["AAPL", "MSFT", "NVDA", "AMZN", "JPM", "KO", "NOSUCH"]


def main() -> None:
    with warnings.catch_warnings():
        # The line below names what was left out.
        warnings.simplefilter("ignore", md.MissingSymbolsWarning)
        close = md.get_bars(
            SYMBOLS,
            period="1y",
            field="close",
            adjustment="split",  # NVDA split in June 2024: its raw closes fall by nine tenths
            tz=None,
            missing="skip",
        )
    facts = close.attrs["marketdata"]
    print(f"{len(close)} sessions x {close.shape[1]} symbols; left out: {facts.get('missing')}")

    returns = close.pct_change().dropna()
    summary = (close.iloc[-1] / close.iloc[0] - 1).to_frame("year")
    summary["volatility"] = returns.std() * 252**0.5
    summary["with AAPL"] = returns.corr()["AAPL"]
    print(summary.round(3))
    if facts["simulated"]:
        print("SIMULATED prices")


if __name__ == "__main__":
    main()
