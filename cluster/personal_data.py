"""Finds personal data by its format, validates it by its issuers' rules, and replaces it with placeholders.

Equal values in a document get the same placeholder, so that the text stays coherent; numbering restarts with every
document, so that placeholders link nothing across documents. Letters of scripts other than Latin may stand right beside
a value, and digits of any script form one. Addresses spelled out in words, addresses in letters beyond ASCII, and phone
numbers without any separator or prefix are not found, except for mobile numbers in Chinese text.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence

from cluster.recipe.corpus import PersonalData

# Letters and digits that make a value beside them a part of a longer word: Latin ones.
_WORD = "A-Za-z0-9_\u00c0-\u024f"
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_.%+-])[A-Za-z0-9_%+-]+(?:\.[A-Za-z0-9_%+-]+)*@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9_-])"
)
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")  # logo@2x.png
# Expressions are searched for several times as fast if they start with a digit, and look behind it only then.
_IPV4 = re.compile(
    rf"[0-9](?<![{_WORD}.][0-9])(?<![0-9A-Fa-f]:[0-9])[0-9]{{0,2}}(?:\.[0-9]{{1,3}}){{3}}(?![{_WORD}]|\.[0-9])"
)
_IPV6 = re.compile(rf"(?<![{_WORD}.:])(?:[0-9A-Fa-f]{{0,4}}:){{2,7}}[0-9A-Fa-f]{{0,4}}(?![{_WORD}:])")
_CARD = re.compile(rf"[0-9](?<![{_WORD}.,-][0-9])(?:[ -]?[0-9]){{12,18}}(?![{_WORD}-]|[.,][0-9])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}")
# Measured alternative: phonenumbers' matcher, whose recall on the labeled sentences of the tests is 0.31 without a
# region and 0.94 with four regions tried in turn; this expression has 0.94 and takes a tenth of the time of one region.
_PHONE = re.compile(
    rf"(?<![{_WORD}+/-])(?:"
    r"(?:\+|00 ?)[1-9][0-9]{0,2}(?:[ .-]?\([0-9]{1,4}\))?(?:[ ./-]?[0-9]{1,5}){2,5}"  # E.164
    r"|(?:1[ .-])?(?:\([2-9][0-9][0-9]\) ?|[2-9][0-9][0-9][ .-])[2-9][0-9][0-9][ .-][0-9]{4}"  # North America
    r"|1[3-9][0-9][ -][0-9]{4}[ -][0-9]{4}"  # mobiles in China
    r"|8[ -]?\(?[3-9][0-9]{2}\)?[ -]?[0-9]{3}[ -][0-9]{2}[ -]?[0-9]{2}"  # Russia and Kazakhstan
    r"|\(0[1-9][0-9]{1,4}\)[0-9]{6,8}"  # with the trunk prefix 0
    r"|\(?0[1-9][0-9]{0,4}\)?(?:[ /-][0-9]{2,8}){1,4}"
    rf")(?![{_WORD}%€$£]|[-./:][0-9]|,[0-9])"
)
_CHINESE_MOBILE = re.compile(rf"1(?<![{_WORD}+/-]1)[3-9][0-9]{{9}}(?![{_WORD}]|[-./:,][0-9])")
_IN_NUMBER = re.compile(r"[0-9][.,:]$")
_HAN = re.compile("[\u4e00-\u9fff]")
_SOCIAL_SECURITY = re.compile(r"[0-9]{3}-[0-9]{2}-[0-9]{4}")
# Cheap tests: most documents match none of them and are not searched further.
_MAY_BE_IPV6 = re.compile(r":[0-9A-Fa-f]{0,4}:")
_MAY_BE_LONG_NUMBER = re.compile(r"[0-9][0-9 ()./-]{6,}[0-9]")
_VERSION = re.compile(
    r"(?:\b(?:version|release|rev|revision|section|chapter|build|firmware|ver|v|oid)|§|版本号?|バージョン|버전|верси[яию])"
    r"[ .:=-]{0,3}$|[A-Za-z][/_-]$",
    re.IGNORECASE,
)
# One in 4,096 of all public addresses has no octet above this number, and nearly all version numbers have none.
_LOW_OCTET = 31
_HOST = re.compile(
    r"(?<![A-Za-z])(?:ips?|ipv4|address(?:es)?|hosts?|servers?|(?:name|web)servers?|dns|ping|resolvers?|gateways?|proxy)"
    r"(?![A-Za-z])|адрес|сервер|хост|地址|服务器|伺服器|主機|主机|アドレス|サーバ|ホスト|주소|서버|호스트|عنوان|خادم"
    r"|पता|सर्वर|ที่อยู่|เซิร์ฟเวอร์",
    re.IGNORECASE,
)
_HOST_WITHIN = 48
# Arabic, Persian, Devanagari, Bengali, Thai and full-width digits, and wide signs around a number.
_ZEROS = (0x660, 0x6F0, 0x966, 0x9E6, 0xE50, 0xFF10)
_OTHER_DIGITS = "".join(chr(zero + digit) for zero in _ZEROS for digit in range(10))
_OTHER_FORMS = re.compile(f"[{_OTHER_DIGITS}＠]|（[0-9]")
_ASCII_FORMS = str.maketrans(f"{_OTHER_DIGITS}＠．＋－（）：", f"{'0123456789' * len(_ZEROS)}@.+-():")
# E.164 allows 15 digits; the shortest international numbers have 8, national ones with their trunk 0 have 9.
_PHONE_DIGITS = {"+": range(8, 16), "0": range(9, 13), "": range(10, 12)}

# Length by country, from the IBAN registry (ISO 13616).
_IBAN_LENGTHS = {
    country: int(length)
    for length, countries in {
        "15": "NO",
        "16": "BE",
        "18": "DK FI FO GL NL",
        "19": "MK SI",
        "20": "AT BA EE KZ LT LU XK",
        "21": "CH HR LI LV",
        "22": "BG BH CR DE GB GE IE ME RS VA",
        "23": "AE IL IQ TL",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG",
        "25": "LY PT ST",
        "26": "IS TR",
        "27": "FR GR IT MC SM MR",
        "28": "AL AZ BY CY DO GT HU LB PL SV",
        "29": "BR EG PS QA UA",
        "30": "JO KW MU",
        "31": "MT SC",
        "32": "LC",
    }.items()
    for country in countries.split()
}
# Prefix and lengths by issuer (ISO/IEC 7812): Visa, Mastercard, American Express, Diners Club, Discover, JCB.
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}"
)


def replace(text: str, kinds: Sequence[PersonalData]) -> tuple[str, dict[PersonalData, int]]:
    """Replaces personal data with placeholders such as <EMAIL_1>.

    Returns:
        (text, counts): the number of values replaced by kind, repeated values included.
    """
    found: dict[PersonalData, int] = {}
    plain = _in_ascii_digits(text)
    # From the strictest format to the loosest: a card number is never taken for two phone numbers.
    for kind in (kind for kind in _FINDERS if kind in kinds):
        numbers: dict[str, int] = {}
        pieces, end = [], 0
        for start, stop in _FINDERS[kind](plain):
            number = numbers.setdefault(_compact(plain[start:stop], kind), len(numbers) + 1)
            pieces += [text[end:start], f"<{kind.upper()}_{number}>"]
            end = stop
            found[kind] = found.get(kind, 0) + 1
        if pieces:
            text = "".join([*pieces, text[end:]])
            plain = _in_ascii_digits(text)
    return text, found


def replace_in_all(texts: Sequence[str], kinds: Sequence[PersonalData]) -> tuple[list[str], dict[PersonalData, int]]:
    """Replaces personal data as `replace` does in the parts of one document: equal values in different parts get the
    same placeholder. Parts without any are returned as they are; beside some, a record separator (U+001E) becomes a
    space."""
    # No value reaches across a line break.
    separator = "\n\x1e\n"
    text, found = replace(separator.join(one.replace("\x1e", " ") for one in texts), kinds)
    return text.split(separator) if found else list(texts), found


def find(text: str, kind: PersonalData) -> Iterator[tuple[int, int]]:
    """Yields the start and end of every value of a kind, in order."""
    return _FINDERS[kind](_in_ascii_digits(text))


def _in_ascii_digits(text: str) -> str:
    """Replaces digits and signs of other scripts and widths by those of ASCII, at the same places."""
    return text if text.isascii() or not _OTHER_FORMS.search(text) else text.translate(_ASCII_FORMS)


def _compact(value: str, kind: PersonalData) -> str:
    """Normalizes case and separators, so that equal values compare equal."""
    return value.lower() if kind in ("email", "ip") else re.sub(r"[^a-z0-9]", "", value.lower())


def is_iban(value: str) -> bool:
    """Tests that an IBAN without spaces has its country's length and valid check digits (ISO 7064, mod 97-10)."""
    if _IBAN_LENGTHS.get(value[:2]) != len(value):
        return False
    return int("".join(str(int(character, 36)) for character in value[4:] + value[:4])) % 97 == 1


def is_card(digits: str) -> bool:
    """Tests that digits have a known issuer's prefix and length, and a valid check digit (ISO/IEC 7812, Luhn)."""
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return bool(_ISSUERS.fullmatch(digits)) and sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def is_public_address(value: str) -> bool:
    """Tests that a string is a public IP address; private and reserved ones identify nobody."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    # IANA allocates only 2000::/3 of IPv6; a::b is more often code than an address.
    return address.is_global and (address.version == 4 or int(address) >> 125 == 1)


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        name, _, domain = match[0].partition("@")
        if len(name) <= 64 and not domain.lower().endswith(_IMAGE_SUFFIXES):
            yield match.span()


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    found = [
        match.span()
        for match in _IPV4.finditer(text)
        if is_public_address(match[0]) and not _is_version(text, *match.span())
    ]
    if _MAY_BE_IPV6.search(text):
        found += [match.span() for match in _IPV6.finditer(text) if is_public_address(match[0])]
    yield from sorted(found)


def _is_version(text: str, start: int, end: int) -> bool:
    """Tests that four numbers are a version: it is called one, or its numbers are low and nothing calls it a host."""
    before = text[max(start - _HOST_WITHIN, 0) : start].rpartition("\n")[2]
    if _VERSION.search(before):
        return True
    low = max(map(int, text[start:end].split("."))) <= _LOW_OCTET
    return low and not _HOST.search(before) and text[end : end + 1] not in (":", "/")


def _cards(text: str) -> Iterator[tuple[int, int]]:
    if _MAY_BE_LONG_NUMBER.search(text):
        yield from (match.span() for match in _CARD.finditer(text) if is_card(re.sub(r"\D", "", match[0])))


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        # Capitals and digits may follow directly: the country's length determines the end.
        places = [match.start() + place for place, character in enumerate(match[0]) if character != " "]
        length = _IBAN_LENGTHS.get(match[0][:2], 0)
        if not 0 < length <= len(places):
            continue
        end = places[length - 1] + 1
        ends_here = not re.match(f"[{_WORD}]", text[end : end + 1])
        if ends_here and is_iban(match[0][: end - match.start()].replace(" ", "")):
            yield match.start(), end


def _phones(text: str) -> Iterator[tuple[int, int]]:
    if not _MAY_BE_LONG_NUMBER.search(text):
        return
    matches = list(_PHONE.finditer(text))
    if _HAN.search(text):
        matches += _CHINESE_MOBILE.finditer(text)
    taken = 0
    for start, end in sorted(match.span() for match in matches):
        if start >= taken and not _IN_NUMBER.search(text, max(start - 2, 0), start) and _is_phone(text[start:end]):
            yield start, end
            taken = end


def _is_phone(value: str) -> bool:
    form = "+" if value.startswith(("+", "00")) else "0" if value.lstrip("(").startswith("0") else ""
    digits = re.sub(r"[^0-9]", "", value).removeprefix("00")
    return len(digits) in _PHONE_DIGITS[form] and not _SOCIAL_SECURITY.fullmatch(value)


_FINDERS: dict[PersonalData, Callable[[str], Iterator[tuple[int, int]]]] = {
    "iban": _ibans,
    "card": _cards,
    "email": _emails,
    "ip": _addresses,
    "phone": _phones,
}
