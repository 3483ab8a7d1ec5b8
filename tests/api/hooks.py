"""Adapts generated requests to the rules of docs/protocol.md that their schemas cannot express."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(context, value):
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@schemathesis.hook
def map_body(context, body):
    """Writes whole numbers without a fraction. For JSON Schema 600.0 is an integer, for the services it is not."""
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
    """Sets `marketId`, which is required without Postgres, and makes `before` an entry of that market's audit."""
    query = case.query = dict(case.query or {})
    market, before = query.setdefault("marketId", 1001), query.get("before")
    if isinstance(before, str) and before.count("-") == 2:
        query["before"] = f"{market}-{before.split('-', 1)[1]}"


@schemathesis.hook("before_call").apply_to(operation_id="readMarkets")
def ids_or_a_page(context, case, kwargs):
    """Drops the other parameters if there is `ids`, which excludes them."""
    if case.query and case.query.get("ids"):
        case.query = {"ids": case.query["ids"]}
