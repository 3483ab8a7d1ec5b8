"""What requests have to be like beside their schemas: as docs/protocol.md says it in words."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(context, value):
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@schemathesis.hook
def map_body(context, body):
    """A whole number is written without a fraction: for JSON Schema 600.0 is an integer."""
    return whole(body)


def whole(value):
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [whole(item) for item in value]
        case dict():
            return {name: whole(item) for name, item in value.items()}
    return value


@schemathesis.hook.apply_to(operation_id="readAudit")
def before_call(context, case, kwargs):
    """`before` is an entry of the market whose audit is asked for."""
    before = case.query.get("before")
    if isinstance(before, str) and before.count("-") == 2:
        case.query["before"] = f"{case.query.get('marketId')}-{before.split('-', 1)[1]}"


@schemathesis.hook("before_call").apply_to(operation_id="readMarkets")
def ids_or_a_page(context, case, kwargs):
    """`ids` stands alone."""
    if case.query.get("ids"):
        case.query = {"ids": case.query["ids"]}
