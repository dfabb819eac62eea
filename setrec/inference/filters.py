"""The language of filters: conditions on the attributes of items.

    category == 'board games' and price < 20 and in_stock
    10 <= price <= 20 and brand not in ('Lego', 'Hasbro') or title like '%train%'

A condition compares columns with values or with each other, by == = != <> < <= > >=, in, between, like (% for any characters, _
for one; capitals do not matter), is null; joined by and, or, not and brackets. The column of a yes/no attribute is a condition
itself. A name with odd characters stands between backticks. A quote within a text is written twice.

A value that is missing makes a comparison false, also != and not in; `not (...)` turns that round. Nothing but this is understood:
there are no functions, and the text becomes an expression of polars over known columns, never code.
"""

import math
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple, NoReturn

import polars as pl

from setrec.errors import ConfigError

Kind = Literal["text", "number", "yes/no"]
MAX_LENGTH = 2_000  # characters
_MAX_DEPTH = 25  # of brackets and nots
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?!\w))
  | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
  | (?P<name>[^\W\d]\w*|`[^`]+`)
  | (?P<sign><=|>=|==|!=|<>|[=<>()\[\],])
  | (?P<end>$)
    )""",
    re.VERBOSE,
)
_WORDS = {"and", "or", "not", "in", "between", "like", "is", "null", "none", "true", "false"}
_COMPARED = {"=": "eq", "==": "eq", "!=": "ne", "<>": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


class _Token(NamedTuple):
    kind: str  # number, text, name, word, sign, end
    value: str
    at: int  # place of its first character, from 1


class _Operand(NamedTuple):
    expr: pl.Expr
    kind: Kind
    column: str | None  # None: a value
    token: _Token


def parse_filter(expression: str, columns: Mapping[str, Kind]) -> pl.Expr:
    """Turn a filter into an expression of polars that is true or false for every row.

    Args:
        expression: the filter.
        columns: the kind of every column.

    Raises:
        ConfigError: it is not a filter, names an unknown column, or compares what cannot be compared.
    """
    if len(expression) > MAX_LENGTH:
        raise ConfigError(f"filter: it has {len(expression):,} characters; at most {MAX_LENGTH:,} are read.")
    return _Parser(expression, columns).parse()


class _Parser:
    def __init__(self, expression: str, columns: Mapping[str, Kind]) -> None:
        self.expression, self.columns = expression, columns
        self.tokens = self._tokens()
        self.place = 0
        self.depth = 0

    def parse(self) -> pl.Expr:
        found = self._or()
        if self.next.kind != "end":
            self._refuse("'and' or 'or' is missing before this" if self.next.kind != "sign" else "this is not expected")
        return found

    # ------------------------------------------------------------------------------------------------------- tokens
    def _tokens(self) -> list[_Token]:
        at = 0
        found: list[_Token] = []
        while not found or found[-1].kind != "end":
            match = _TOKEN.match(self.expression, at)
            if match is None:
                at += len(self.expression[at:]) - len(self.expression[at:].lstrip())
                self._refuse("this is not understood", _Token("end", self.expression[at : at + 20], at + 1))
            kind = str(match.lastgroup)
            value, at = match[kind], match.end()
            if kind == "name" and value.lower() in _WORDS:
                kind, value = "word", value.lower()
            found.append(_Token(kind, value, match.start(match.lastgroup or 0) + 1))
        return found

    @property
    def next(self) -> _Token:
        return self.tokens[self.place]

    def _take(self, *values: str) -> _Token | None:
        """Take the next token if it is one of these words or signs."""
        token = self.next
        if token.kind in ("word", "sign") and token.value in values:
            self.place += 1
            return token
        return None

    def _must_take(self, value: str) -> None:
        if self._take(value) is None:
            self._refuse(f"{value!r} is missing before this")

    def _refuse(self, why: str, token: _Token | None = None) -> NoReturn:
        token = token or self.next
        shown = repr(token.value[:40]) if token.value else "its end"
        raise ConfigError(f"filter, character {token.at}, {shown}: {why}; in {self.expression[:200]!r}.")

    # ----------------------------------------------------------------------------------------------------- grammar
    def _or(self) -> pl.Expr:
        found = self._and()
        while self._take("or"):
            found = found | self._and()
        return found

    def _and(self) -> pl.Expr:
        found = self._not()
        while self._take("and"):
            found = found & self._not()
        return found

    def _not(self) -> pl.Expr:
        token = self._take("not", "(")
        if token is None:
            return self._comparison()
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            self._refuse(f"there are more than {_MAX_DEPTH} brackets and nots within each other", token)
        if token.value == "not":
            found = ~self._not()
        else:
            found = self._or()
            self._must_take(")")
        self.depth -= 1
        return found

    def _comparison(self) -> pl.Expr:
        left = self._operand()
        turned = self._take("not")
        if self._take("in"):
            found = self._in(left)
        elif self._take("between"):
            low = self._operand()
            self._must_take("and")
            found = self._compared(low, "<=", left) & self._compared(left, "<=", self._operand())
        elif token := self._take("like"):
            found = self._like(left, token)
        elif turned:
            self._refuse("'in', 'between' or 'like' is missing before this")
        elif self._take("is"):
            return self._is(left)
        else:
            return self._chain(left)
        return self._known(left) & ~found if turned else found

    def _chain(self, left: _Operand) -> pl.Expr:
        """One comparison, or several as in 10 <= price < 20, or a yes/no column alone."""
        found = None
        while sign := self._take(*_COMPARED):
            right = self._operand()
            one = self._compared(left, sign.value, right)
            found = one if found is None else found & one
            left = right
        if found is not None:
            return found
        if left.column is None or left.kind != "yes/no":
            self._refuse(
                "it is no condition" if left.column is None else f"this column holds {self._holds(left)}, so it must be compared",
                left.token,
            )  # fmt: skip
        return left.expr.fill_null(False)

    def _is(self, left: _Operand) -> pl.Expr:
        turned = self._take("not")
        if left.column is None:
            self._refuse("only a column can be missing", left.token)
        if self._take("null", "none") is None:
            self._refuse("'null' is missing before this")
        return left.expr.is_not_null() if turned else left.expr.is_null()

    def _in(self, left: _Operand) -> pl.Expr:
        opened = self._take("(", "[")
        if opened is None:
            self._refuse("a list such as (1, 2) is missing before this")
        closing = {"(": ")", "[": "]"}[opened.value]
        found = pl.lit(False)
        while True:
            found = found | self._compared(left, "==", self._operand())
            if self._take(closing):
                return found
            self._must_take(",")

    def _like(self, left: _Operand, token: _Token) -> pl.Expr:
        right = self._operand()
        if left.column is None or left.kind != "text" or right.column is not None or right.kind != "text":
            self._refuse("'like' compares a column of text with a text", token)
        parts = {"%": ".*", "_": "."}
        pattern = "".join(parts.get(char, re.escape(char)) for char in _text_of(right.token))
        return left.expr.str.contains(f"(?si)^{pattern}$").fill_null(False)

    def _operand(self) -> _Operand:
        token = self.next
        self.place += token.kind != "end"
        if token.kind == "name":
            name = token.value.strip("`")
            if name not in self.columns:
                there = ", ".join(f"{one} ({kind})" for one, kind in list(self.columns.items())[:50])
                self._refuse(f"the catalogue has no such column; it has {there}", token)
            return _Operand(pl.col(name), self.columns[name], name, token)
        if token.kind == "number":
            value = float(token.value)
            if not math.isfinite(value):
                self._refuse("this number is too large", token)
            return _Operand(pl.lit(value), "number", None, token)
        if token.kind == "text":
            return _Operand(pl.lit(_text_of(token)), "text", None, token)
        if token.kind == "word" and token.value in ("true", "false"):
            return _Operand(pl.lit(token.value == "true"), "yes/no", None, token)
        self._refuse("a column or a value must stand here", token)

    def _compared(self, left: _Operand, sign: str, right: _Operand) -> pl.Expr:
        if left.column is None and right.column is None:
            self._refuse("two values are compared; one side must be a column", left.token)
        if left.kind != right.kind:
            column, other = (left, right) if left.column is not None else (right, left)
            self._refuse(f"{column.column!r} holds {self._holds(column)}, which this is not", other.token)
        if left.kind == "yes/no" and _COMPARED[sign] not in ("eq", "ne"):
            self._refuse("yes/no columns are only equal or not", right.token)
        found: pl.Expr = getattr(left.expr, _COMPARED[sign])(right.expr)
        return found.fill_null(False)

    @staticmethod
    def _known(operand: _Operand) -> pl.Expr:
        return operand.expr.is_not_null()

    @staticmethod
    def _holds(operand: _Operand) -> str:
        return {"text": "texts", "number": "numbers", "yes/no": "yes or no (true, false)"}[operand.kind]


def _text_of(token: _Token) -> str:
    quote = token.value[0]
    return token.value[1:-1].replace(2 * quote, quote)
