"""Money as people read it: integer minor units and an ISO 4217 currency become `12.00 EUR`.

The gateway's own table, which a client may not import: `tests/rules/test_sdk_money.py` compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_BY_EXPONENT: Mapping[int, str] = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: (
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW CNY COP "
        "COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR "
        "JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD "
        "NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC "
        "SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG"
    ),
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}

EXPONENTS: Mapping[str, int] = MappingProxyType(
    {currency: exponent for exponent, currencies in _BY_EXPONENT.items() for currency in currencies.split()}
)
"""How many decimal places each currency has."""


def format(value: int, currency: str) -> str:
    """Writes an amount.

    Args:
        value: minor units of the currency.
        currency: three letters, in any case.

    Returns:
        `12.00 EUR`, `1200 JPY`, `1.200 KWD`; `1200 minor units of ZZZ` where the currency is not in ISO 4217, because a guessed
        decimal point would state another amount.
    """
    name = currency.upper()
    exponent = EXPONENTS.get(name)
    if exponent is None:
        return f"{value} minor units of {name}"
    if exponent == 0:
        return f"{value} {name}"
    whole, fraction = divmod(abs(value), 10**exponent)
    return f"{'-' if value < 0 else ''}{whole}.{fraction:0{exponent}d} {name}"
