"""S3's XML, read and written from botocore's service model.

Owns the walk over shapes; a handler gives and gets plain mappings named as the model names them.
Parsing is expat with every road to a DTD or an entity closed (the handler raises at the doctype,
before anything is expanded), at most 1 MiB, 16 levels and 100,000 elements (I8).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from xml.parsers import expat

from kvfs_gateway.s3.errors import XML_DECLARATION, S3Error, xml_text
from kvfs_gateway.s3.http_dates import parse_http_date, render_iso_date
from kvfs_gateway.s3.service_model import ListShape, Shape, StructureShape, s3_operation

MAX_XML_LENGTH = 1024 * 1024
_MAX_DEPTH = 16
_MAX_ELEMENTS = 100_000
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"

Value = object
"""str, int, bool, or a Mapping or Sequence of Values, as the shape says."""


class _Node:
    """One parsed element: either text or children counts, as its shape says."""

    __slots__ = ("children", "name", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.children: list[_Node] = []


# -- writing


def render(operation: str, result: Mapping[str, Value]) -> bytes:
    """Return the body of an operation's answer; members absent from `result` are left out."""
    shape = s3_operation(operation).output_shape
    assert isinstance(shape, StructureShape), f"{operation} has no answer to render"
    payload = shape.serialization.get("payload")
    if payload is not None:
        inner_shape = shape.members[payload]
        assert isinstance(inner_shape, StructureShape), "an XML payload is a structure"
        shape = inner_shape
    root = shape.serialization.get("name") or _ROOTS.get(operation) or f"{operation}Result"
    inner = _render_structure(shape, result)
    text = f'<{root} xmlns="{_NAMESPACE}">{inner}</{root}>'
    return XML_DECLARATION + text.encode()


_ROOTS = {
    "ListBuckets": "ListAllMyBucketsResult",
    "ListObjects": "ListBucketResult",
    "ListObjectsV2": "ListBucketResult",
    "DeleteObjects": "DeleteResult",
    "CreateMultipartUpload": "InitiateMultipartUploadResult",
    "GetObjectAttributes": "GetObjectAttributesResponse",
    "GetObjectTagging": "Tagging",
    "GetBucketTagging": "Tagging",
    "GetBucketAcl": "AccessControlPolicy",
    "GetObjectAcl": "AccessControlPolicy",
    "GetBucketLifecycleConfiguration": "LifecycleConfiguration",
    "GetBucketVersioning": "VersioningConfiguration",
    "GetBucketPolicyStatus": "PolicyStatus",
    "GetBucketLogging": "BucketLoggingStatus",
    "GetBucketNotificationConfiguration": "NotificationConfiguration",
    "GetBucketRequestPayment": "RequestPaymentConfiguration",
    "GetBucketAccelerateConfiguration": "AccelerateConfiguration",
    "GetPublicAccessBlock": "PublicAccessBlockConfiguration",
    "GetBucketOwnershipControls": "OwnershipControls",
    "ListObjectVersions": "ListVersionsResult",
    "UploadPartCopy": "CopyPartResult",
}
"""Root elements that the model does not name (botocore ignores them, other clients do not)."""


def render_location(region: str) -> bytes:
    """Return GetBucketLocation's body, whose root element holds the text itself."""
    return XML_DECLARATION + (
        f'<LocationConstraint xmlns="{_NAMESPACE}">{xml_text(region)}</LocationConstraint>'.encode()
    )


def _render_structure(shape: StructureShape, value: Mapping[str, Value]) -> str:
    pieces = []
    for name, element, member, is_none in _plan(shape):
        item = value.get(name)
        if item is not None and not is_none:
            pieces.append(_render_member(member, element, item))
    return "".join(pieces)


_Plan = tuple[tuple[str, str, Shape, bool], ...]
_plans: dict[str, _Plan] = {}


def _plan(shape: StructureShape) -> _Plan:
    """(member, element, shape, is it none) of a structure; bounded by the model's shapes."""
    plan = _plans.get(shape.name)
    if plan is None:
        plan = tuple(
            (name, _element_name(name, member), member, _is_no_element(member))
            for name, member in shape.members.items()
        )
        _plans[shape.name] = plan
    return plan


def _is_no_element(shape: Shape) -> bool:
    if shape.serialization.get("xmlAttribute"):
        return True
    return shape.serialization.get("location") in ("header", "headers", "querystring", "uri")


def _element_name(member_name: str, shape: Shape) -> str:
    if isinstance(shape, ListShape) and shape.serialization.get("flattened"):
        name = shape.serialization.get("name") or shape.member.serialization.get("name")
    else:
        name = shape.serialization.get("name")
    return name or member_name


def _render_member(shape: Shape, element: str, value: Value) -> str:
    if isinstance(shape, StructureShape):
        assert isinstance(value, Mapping), f"{element} is a structure"
        attributes = _render_attributes(shape, value)
        return f"<{element}{attributes}>{_render_structure(shape, value)}</{element}>"
    if isinstance(shape, ListShape):
        return _render_list(shape, element, value)
    return f"<{element}>{xml_text(_render_scalar(value))}</{element}>"


def _render_attributes(shape: StructureShape, value: Mapping[str, Value]) -> str:
    """Return the XML attributes of an element; S3 has one, a grantee's `xsi:type`."""
    space = shape.serialization.get("xmlNamespace")
    if not space:
        return ""
    pieces = [f' xmlns:{space["prefix"]}="{space["uri"]}"'] if "prefix" in space else []
    for name, member in shape.members.items():
        if member.serialization.get("xmlAttribute") and name in value:
            text = xml_text(_render_scalar(value[name]))
            pieces.append(f' {member.serialization["name"]}="{text}"')
    return "".join(pieces)


def _render_list(shape: ListShape, element: str, value: Value) -> str:
    assert isinstance(value, Sequence), f"{element} is a list"
    if shape.serialization.get("flattened"):
        return "".join(_render_member(shape.member, element, item) for item in value)
    inner_name = shape.member.serialization.get("name") or "member"
    inner = "".join(_render_member(shape.member, inner_name, item) for item in value)
    return f"<{element}>{inner}</{element}>"


def _render_scalar(value: Value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


# -- reading


def parse(operation: str, body: bytes) -> Mapping[str, Value]:
    """Return the request body of an operation, by the model's member names.

    Raises: S3Error MalformedXML for anything but one well-formed document of the expected root,
    with known elements, required ones present and scalars of the right type.
    """
    shape = s3_operation(operation).input_shape
    assert isinstance(shape, StructureShape), f"{operation} takes no body"
    payload = shape.members[str(shape.serialization["payload"])]
    assert isinstance(payload, StructureShape), "an XML payload is a structure"
    root = _parse_tree(body)
    expected = payload.serialization.get("name") or payload.name
    if root.name != expected:
        raise S3Error("MalformedXML")
    return _read_structure(payload, root)


def _parse_tree(body: bytes) -> _Node:
    if len(body) > MAX_XML_LENGTH:
        raise S3Error("MaxMessageLengthExceeded")
    builder = _TreeBuilder()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.EntityDeclHandler = _refuse_doctype
    parser.ExternalEntityRefHandler = _refuse_doctype
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    try:
        parser.Parse(body, True)
    except (expat.ExpatError, LookupError, ValueError):
        # LookupError and ValueError: a declared encoding that Python cannot serve.
        raise S3Error("MalformedXML") from None
    if builder.root is None:
        raise S3Error("MalformedXML")
    return builder.root


def _refuse_doctype(*_: object) -> int:
    raise S3Error("MalformedXML")


class _TreeBuilder:
    def __init__(self) -> None:
        self.root: _Node | None = None
        self._stack: list[_Node] = []
        self._count = 0

    def start(self, name: str, _attributes: Mapping[str, str]) -> None:
        self._count += 1
        if len(self._stack) >= _MAX_DEPTH or self._count > _MAX_ELEMENTS:
            raise S3Error("MalformedXML")
        # Clients send the S3 namespace, none, or a wrong one; S3 goes by the local name.
        node = _Node(name.rpartition(" ")[2])
        if self._stack:
            self._stack[-1].children.append(node)
        else:
            self.root = node
        self._stack.append(node)

    def end(self, _name: str) -> None:
        self._stack.pop()

    def text(self, data: str) -> None:
        if self._stack:
            self._stack[-1].text += data


def _read_structure(shape: StructureShape, node: _Node) -> Mapping[str, Value]:
    elements = {element: (name, member) for name, element, member, _ in _plan(shape)}
    result: dict[str, Value] = {}
    for child in node.children:
        if child.name not in elements:
            raise S3Error("MalformedXML")
        name, member = elements[child.name]
        if isinstance(member, ListShape) and member.serialization.get("flattened"):
            items = result.setdefault(name, [])
            assert isinstance(items, list), "a flattened list was begun as a list"
            items.append(_read_member(member.member, child))
        elif name in result:
            raise S3Error("MalformedXML")
        else:
            result[name] = _read_member(member, child)
    members = shape.members
    for name in shape.required_members:  # an attribute is not read: an element says the same
        if name not in result and not members[name].serialization.get("xmlAttribute"):
            raise S3Error("MalformedXML")
    return result


def _read_member(shape: Shape, node: _Node) -> Value:
    if isinstance(shape, StructureShape):
        return _read_structure(shape, node)
    if isinstance(shape, ListShape):
        inner = shape.member.serialization.get("name") or "member"
        if any(child.name != inner for child in node.children):
            raise S3Error("MalformedXML")
        return [_read_member(shape.member, child) for child in node.children]
    if node.children:
        raise S3Error("MalformedXML")
    return _reader(shape.type_name)(node.text)


@functools.cache
def _reader(type_name: str) -> Callable[[str], Value]:
    return {
        "integer": _read_integer,
        "long": _read_integer,
        "boolean": _read_boolean,
        "timestamp": _read_timestamp,
    }.get(type_name, str)


def _read_integer(text: str) -> Value:
    text = text.strip()
    if not (text.isascii() and text.lstrip("-").isdigit() and len(text) < 20):
        raise S3Error("MalformedXML")
    return int(text)


def _read_boolean(text: str) -> Value:
    if text.strip().lower() not in ("true", "false"):
        raise S3Error("MalformedXML")
    return text.strip().lower() == "true"


def _read_timestamp(text: str) -> Value:
    """Dates come in ISO 8601 and as HTTP writes them; both leave as ISO 8601."""
    seconds = parse_http_date(text.strip())
    if seconds is None:
        raise S3Error("MalformedXML")
    return render_iso_date(seconds * 1_000_000_000)
