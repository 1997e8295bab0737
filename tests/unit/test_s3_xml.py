"""XML from the service model: clients' documents are read, hostile ones are refused at once."""

import pytest

from kvfs_gateway.s3 import xml
from kvfs_gateway.s3.errors import ErrorContext, S3Error, render_error

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def test_a_listing_is_rendered_as_the_model_says() -> None:
    body = xml.render(
        "ListObjectsV2",
        {
            "Name": "b",
            "IsTruncated": False,
            "KeyCount": 1,
            "Contents": [{"Key": "a<&>\r", "Size": 3, "ETag": '"x"'}],
            "CommonPrefixes": [{"Prefix": "p/"}, {"Prefix": "q/"}],
        },
    ).decode()
    assert f'<ListBucketResult xmlns="{NAMESPACE}">' in body
    assert "<Contents><Key>a&lt;&amp;&gt;&#13;</Key>" in body
    assert "<CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes><CommonPrefixes>" in body
    assert "<IsTruncated>false</IsTruncated>" in body


def test_lists_that_are_not_flattened_keep_their_wrapper() -> None:
    body = xml.render("ListBuckets", {"Buckets": [{"Name": "a"}, {"Name": "b"}]}).decode()
    assert (
        "<Buckets><Bucket><Name>a</Name></Bucket><Bucket><Name>b</Name></Bucket></Buckets>" in body
    )


@pytest.mark.parametrize("namespace", [f' xmlns="{NAMESPACE}"', "", ' xmlns="http://other/"'])
def test_complete_is_read_with_and_without_a_namespace(namespace: str) -> None:
    body = f"""<?xml version="1.0"?><CompleteMultipartUpload{namespace}>
    <Part><PartNumber>1</PartNumber><ETag>"a"</ETag></Part>
    <Part><ETag>b</ETag><PartNumber> 2 </PartNumber><ChecksumCRC32>x</ChecksumCRC32></Part>
    </CompleteMultipartUpload>"""
    assert xml.parse("CompleteMultipartUpload", body.encode()) == {
        "Parts": [
            {"PartNumber": 1, "ETag": '"a"'},
            {"PartNumber": 2, "ETag": "b", "ChecksumCRC32": "x"},
        ]
    }


def test_delete_is_read() -> None:
    body = (
        b"<Delete><Quiet>true</Quiet><Object><Key>a</Key></Object><Object><Key/></Object></Delete>"
    )
    assert xml.parse("DeleteObjects", body) == {
        "Quiet": True,
        "Objects": [{"Key": "a"}, {"Key": ""}],
    }


BILLION = b"""<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>
<Delete><Object>&b;</Object></Delete>"""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"<Delete>",
        b"<Delete></Delete>",
        b"<Other><Object><Key>a</Key></Object></Other>",
        b"<Delete><Object><Key>a</Key></Object></Delete><Delete/>",
        b"<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>",
        b"<Delete><Object><Unknown>a</Unknown></Object></Delete>",
        b"<Delete><Object><Key><b/></Key></Object></Delete>",
        b"<Delete><Quiet>maybe</Quiet><Object><Key>a</Key></Object></Delete>",
        BILLION,
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><Delete><Object><Key>a</Key></Object></Delete>',
        b"<!DOCTYPE Delete><Delete><Object><Key>a</Key></Object></Delete>",
        b"<Delete><Object><Key>&xxe;</Key></Object></Delete>",
        b'<?xml version="1.0" encoding="nonsense"?><Delete/>',
        b'<?xml version="1.0" encoding="utf-7"?><Delete/>',
        b"<Delete>" * 50 + b"</Delete>" * 50,
        b"<Delete><Object><Key>\xff</Key></Object></Delete>",
        b"<Delete><Object><Key>\0</Key></Object></Delete>",
    ],
)
def test_anything_else_is_malformed(body: bytes) -> None:
    with pytest.raises(S3Error) as refusal:
        xml.parse("DeleteObjects", body)
    assert refusal.value.code == "MalformedXML"


def test_i8_documents_are_bounded() -> None:
    with pytest.raises(S3Error):
        xml.parse("DeleteObjects", b" " * (xml.MAX_XML_LENGTH + 1))
    with pytest.raises(S3Error):
        xml.parse("DeleteObjects", b"<Delete>" + b"<Object/>" * 100_001 + b"</Delete>")


def test_an_error_body_is_well_formed_whatever_the_key_was() -> None:
    context = ErrorContext("/b/\0\x08<&\ud800￿", "4442587FB7D0A2F9")
    body = render_error(S3Error("NoSuchKey", fields=(("Key", "\x01"),)), context)
    root = xml._parse_tree(body)
    assert [child.name for child in root.children] == [
        "Code",
        "Message",
        "Key",
        "Resource",
        "RequestId",
    ]
