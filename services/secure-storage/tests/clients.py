"""Two S3 clients of other makers, boto3 and minio, against a gateway: the acceptance tests of secure storage.

Usage: clients.py SUITE ENDPOINT ACCESS SECRET [argument]. Prints a line per thing that holds; fails at the first that
does not.
"""

import base64
import collections
import hashlib
import io
import json
import os
import random
import re
import sys
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
import zlib
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import boto3
import boto3.s3.transfer
import botocore.auth
import botocore.awsrequest
import botocore.credentials
import botocore.exceptions
import botocore.session
from botocore.client import Config
from minio import Minio
from minio.commonconfig import ENABLED, Tags
from minio.versioningconfig import SUSPENDED, VersioningConfig

SUITE, ENDPOINT, ACCESS, SECRET = sys.argv[1:5]
CREDENTIALS = botocore.credentials.Credentials(ACCESS, SECRET)


# Which members of which operations were sent by the suites before `model`, which check what became of them.
SENT = collections.defaultdict(set)


def note(params, model, **_):
    SENT[model.name] |= set(params)


def client(secret=SECRET, access=ACCESS):
    config = Config(signature_version="s3v4", s3={"addressing_style": "path"}, retries={"max_attempts": 0},
                    read_timeout=60)
    made = boto3.client("s3", endpoint_url=ENDPOINT, aws_access_key_id=access, aws_secret_access_key=secret,
                        region_name="local", config=config)
    made.meta.events.register("before-parameter-build.s3", note)
    return made


S3 = client()


def holds(what, true=True):
    assert true, what
    print("ok", what, flush=True)


def headers_of(answer):
    return answer["ResponseMetadata"]["HTTPHeaders"]


def refused(code, status, call, **arguments):
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        found = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert found == (code, status), (found, error)
        return error.response["Error"].get("Message", "")
    raise AssertionError(f"not refused with {code}")


def data(size, seed=1):
    source = random.Random(seed)
    # Python draws at most 256 MB at once.
    return b"".join(source.randbytes(min(100_000_000, size - at)) for at in range(0, size, 100_000_000))


def get(key, bucket="plant", **arguments):
    return S3.get_object(Bucket=bucket, Key=key, **arguments)["Body"].read()


def http(method, path, body=None, headers=None):
    request = urllib.request.Request(ENDPOINT + path, data=body, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read().decode("utf8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def signed(method, path, body, headers=None, signer=botocore.auth.S3SigV4Auth):
    request = botocore.awsrequest.AWSRequest(method, ENDPOINT + path, data=body, headers=headers or {})
    request.headers["x-amz-content-sha256"] = hashlib.sha256(body or b"").hexdigest()
    signer(CREDENTIALS, "s3", "local").add_auth(request)
    return dict(request.headers)


def policy(method, path="", body=None, sign=True):
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    path = "/storage_policy" + path
    status, text = http(method, path, raw, signed(method, path, raw) if sign else None)
    return status, json.loads(text) if text.startswith(("{", "[")) else text


def policies():
    edge = {e["name"]: e["id"] for e in json.loads(http("GET", "/edge_devices/")[1])}
    clouds = json.loads(http("GET", "/cloud_locations/")[1])
    holds("S13 cloud locations show prices, null where unknown", clouds[0]["storage_price"] is None)
    holds("S13 with every field", {
        "id", "location", "country", "countrycode", "lat", "lng", "is_gdpr", "download_price", "upload_price",
        "cloud_provider_name", "cloud_provider_jurisdiction", "cloud_provider_url", "upload_errors_in_last_12_months",
        "download_errors_in_last_12_months", "rtt_upload_1B_ms", "rtt_download_1B_ms", "rtt_upload_1MB_ms",
        "rtt_download_1MB_ms"} <= clouds[0].keys())
    hybrid = {"name": "hybrid", "description": "three and one", "edge_devices": [edge["e1"], edge["e2"], edge["e3"]],
              "backends": [clouds[0]["id"]], "redundancy": {"scheme": "RLNC", "redundant_packets": 1},
              "compression": None, "encryption": {"scheme": "AES", "key_size": 256, "block_mode": "GCM"}}
    edge_only = dict(hybrid, name="edge-only", backends=[], compression={"scheme": "DEFLATE", "level": 7},
                     redundancy={"scheme": "RS", "redundant_packets": 1})
    cloud_only = dict(hybrid, name="cloud-only", edge_devices=[], redundancy={"scheme": "RS", "redundant_packets": 0})
    plain = dict(edge_only, name="plain-edge", encryption=None)
    for wanted in [hybrid, edge_only, cloud_only, plain]:
        status, made = policy("POST", body=wanted)
        holds(f"S6 {wanted['name']} is made", status == 201)
        holds(f"S6 {wanted['name']} comes back as it was sent", {k: made[k] for k in wanted} == wanted)
        assert made["id"] > 0 and made["team_id"] > 0
    status, listed = policy("GET")
    names = {p["name"] for p in listed}
    holds("S6 all are listed", names >= {"hybrid", "edge-only", "cloud-only", "plain-edge"})
    hybrid["description"] = "changed"
    holds("S6 one is changed", policy("PUT", body=hybrid)[1]["description"] == "changed")
    holds("S6 twice is refused", policy("POST", body=hybrid)[0] == 409)
    holds("S6 an unsigned call is refused", policy("GET", sign=False)[0] == 403)
    for wrong in [b"{", b"[]", b"{}", dict(hybrid, name="x", backends=[99]), dict(hybrid, name="x", unknown=1),
                  dict(hybrid, name="x", redundancy={"scheme": "RLNC", "redundant_packets": 4}),
                  dict(hybrid, name="a/b"), dict(hybrid, name="x", compression={"scheme": "LZW", "level": 1})]:
        status, printed = policy("POST", body=wrong)
        assert status == 400 and "hint" in printed, (wrong, status, printed)
    holds("S6 wrong policies are refused with a hint")


def buckets():
    S3.create_bucket(Bucket="plant", CreateBucketConfiguration={"LocationConstraint": "hybrid"})
    S3.create_bucket(Bucket="with.dots", CreateBucketConfiguration={"LocationConstraint": "edge-only"})
    S3.create_bucket(Bucket="empty", CreateBucketConfiguration={"LocationConstraint": "cloud-only"})
    names = [b["Name"] for b in S3.list_buckets()["Buckets"]]
    holds("S1 buckets are listed", names == ["empty", "plant", "with.dots"])
    S3.head_bucket(Bucket="plant")
    holds("S1 a bucket says its policy", S3.get_bucket_location(Bucket="plant")["LocationConstraint"] == "hybrid")
    holds("S6 and the policy API too", policy("GET", "/plant")[1]["name"] == "hybrid")
    holds("S6 a policy in use stays", policy("DELETE", "/hybrid")[0] == 409)
    refused("BucketAlreadyOwnedByYou", 409, S3.create_bucket, Bucket="plant",
            CreateBucketConfiguration={"LocationConstraint": "hybrid"})
    refused("InvalidLocationConstraint", 400, S3.create_bucket, Bucket="other",
            CreateBucketConfiguration={"LocationConstraint": "nowhere"})
    S3.delete_bucket(Bucket="empty")
    refused("404", 404, S3.head_bucket, Bucket="empty")
    refused("NoSuchBucket", 404, S3.put_object, Bucket="empty", Key="x", Body=b"x")
    holds("S6 a policy that no bucket uses goes", policy("DELETE", "/cloud-only")[0] == 204)
    holds("S1 refusals are those of S3")


ODD = "ä/ +&<>'\"/日本?#%25"


def objects():
    for size in [0, 1, 1_000_000, 8 << 20, (8 << 20) + 1]:
        body = data(size, size)
        put = S3.put_object(Bucket="plant", Key=f"size/{size}", Body=body, ContentType="x/y", Metadata={"who": "me"})
        assert put["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
        found = S3.get_object(Bucket="plant", Key=f"size/{size}")
        assert found["Body"].read() == body and found["Metadata"] == {"who": "me"} and found["ContentType"] == "x/y"
        assert S3.head_object(Bucket="plant", Key=f"size/{size}")["ContentLength"] == size
    holds("S2 objects of 0 B to 8 MiB and a byte come back")
    refused("NoSuchKey", 404, S3.get_object, Bucket="plant", Key="nothing")
    refused("404", 404, S3.head_object, Bucket="plant", Key="nothing")
    S3.put_object(Bucket="plant", Key="size/1", Body=b"replaced")
    holds("S2 a replaced object is the new one", get("size/1") == b"replaced")
    S3.delete_object(Bucket="plant", Key="size/1")
    S3.delete_object(Bucket="plant", Key="size/1")
    refused("NoSuchKey", 404, S3.get_object, Bucket="plant", Key="size/1")
    holds("S2 a deleted object is gone, and twice is no error")
    S3.copy_object(Bucket="with.dots", Key="copy", CopySource={"Bucket": "plant", "Key": "size/1000000"})
    holds("S2 a copy under another policy", get("copy", "with.dots") == data(1_000_000, 1_000_000))
    S3.put_object(Bucket="plant", Key=ODD, Body=b"odd")
    holds("S2 odd keys", get(ODD) == b"odd")
    refused("PreconditionFailed", 412, S3.put_object, Bucket="plant", Key=ODD, Body=b"x", IfNoneMatch="*")
    holds("S2 conditions hold", get(ODD) == b"odd")
    get("size/1000000")
    again = get("size/1000000")
    holds("S2 a repeated read is the same", again == data(1_000_000, 1_000_000))


def signatures():
    refused("SignatureDoesNotMatch", 403, client(secret="wrong" + SECRET[5:]).list_buckets)
    body, path = b"what was signed", "/plant/altered"
    headers = signed("PUT", path, body, {"x-amz-meta-a": "b"})
    holds("S3 as signed it is taken", http("PUT", path, body, headers)[0] == 200)
    S3.delete_object(Bucket="plant", Key="altered")
    status, text = http("PUT", path, body, {k: "c" if k == "x-amz-meta-a" else v for k, v in headers.items()})
    holds("S3 an altered header is refused", status == 403 and "<Code>SignatureDoesNotMatch</Code>" in text)
    status, text = http("PUT", path, b"what was forged", headers)
    holds(f"S3 an altered body is refused ({status})", status in (400, 403) and "<Code>" in text)
    refused("NoSuchKey", 404, S3.get_object, Bucket="plant", Key="altered")
    holds("S3 and nothing of it is visible")
    url = S3.generate_presigned_url("get_object", Params={"Bucket": "plant", "Key": ODD}, ExpiresIn=60)
    holds("S3 a presigned URL reads", urllib.request.urlopen(url).read() == b"odd")
    forged = re.sub("(?<=X-Amz-Signature=).", lambda m: "0" if m[0] != "0" else "1", url).removeprefix(ENDPOINT)
    holds("S3 a forged one does not", http("GET", forged)[0] == 403)
    holds("S3 an unsigned request is refused", http("GET", "/plant/size/0")[0] == 403)


def ranges():
    size = (8 << 20) + 1
    body, key = data(size, size), f"size/{size}"
    for text, part in [("bytes=0-99", body[:100]), ("bytes=300000-900000", body[300000:900001]),
                       ("bytes=-7", body[-7:]), ("bytes=8388600-", body[8388600:]), ("bytes=5-99999999", body[5:])]:
        found = S3.get_object(Bucket="plant", Key=key, Range=text)
        assert found["Body"].read() == part and found["ResponseMetadata"]["HTTPStatusCode"] == 206, text
        assert found["ContentRange"].endswith(f"/{size}")
    refused("InvalidRange", 416, S3.get_object, Bucket="plant", Key=key, Range="bytes=99999999-")
    holds("S4 ranges: first, middle, suffix, beyond the end")


def multipart():
    parts = {n: data((5 << 20) + n, n) for n in (1, 2)} | {7: data(3, 7)}
    upload = S3.create_multipart_upload(Bucket="plant", Key="multi", Metadata={"a": "b"})["UploadId"]
    at = {"Bucket": "plant", "Key": "multi", "UploadId": upload}
    tags = {n: S3.upload_part(**at, PartNumber=n, Body=parts[n])["ETag"] for n in (7, 2, 1)}
    listed = S3.list_parts(**at)["Parts"]
    holds("S5 parts are listed by number", [(p["PartNumber"], p["ETag"]) for p in listed] == sorted(tags.items()))
    uploads = S3.list_multipart_uploads(Bucket="plant")["Uploads"]
    holds("S5 uploads are listed", [(u["Key"], u["UploadId"]) for u in uploads] == [("multi", upload)])
    refused("NoSuchKey", 404, S3.get_object, Bucket="plant", Key="multi")

    def complete(named):
        named = [{"PartNumber": n, "ETag": t} for n, t in named]
        return S3.complete_multipart_upload(**at, MultipartUpload={"Parts": named})

    refused("InvalidPartOrder", 400, complete, named=[(2, tags[2]), (1, tags[1])])
    refused("InvalidPart", 400, complete, named=[(1, tags[2])])
    small = S3.upload_part(**at, PartNumber=8, Body=b"small")["ETag"]
    refused("EntityTooSmall", 400, complete, named=[(7, tags[7]), (8, small)])
    complete(sorted(tags.items()))
    holds("S5 completed, the parts are one object", get("multi") == parts[1] + parts[2] + parts[7])
    holds("S5 and a range over their border",
          get("multi", Range="bytes=5242870-5242890") == (parts[1] + parts[2])[5242870:5242891])
    holds("S5 with its metadata", S3.head_object(Bucket="plant", Key="multi")["Metadata"] == {"a": "b"})
    complete(sorted(tags.items()))
    holds("S5 completed twice is the same")
    upload = S3.create_multipart_upload(Bucket="plant", Key="gone")["UploadId"]
    at = {"Bucket": "plant", "Key": "gone", "UploadId": upload}
    S3.upload_part(**at, PartNumber=1, Body=b"x" * 100)
    S3.abort_multipart_upload(**at)
    refused("NoSuchUpload", 404, S3.list_parts, **at)
    holds("S5 aborted, nothing is left", not S3.list_multipart_uploads(Bucket="plant").get("Uploads"))


def slow_part(at, number, body):
    """Sends half of a part; what it returns sends the rest and gives status and answer."""
    url = S3.generate_presigned_url("upload_part", Params={**at, "PartNumber": number}, ExpiresIn=60)
    connection = HTTPConnection(ENDPOINT.removeprefix("http://"), timeout=60)
    connection.putrequest("PUT", url.removeprefix(ENDPOINT))
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    connection.send(body[:len(body) // 2])
    time.sleep(0.5)  # The gateway has found the upload, and reads.

    def finish():
        connection.send(body[len(body) // 2:])
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    return finish


def begin(key, parts):
    at = {"Bucket": "plant", "Key": key, "UploadId": S3.create_multipart_upload(Bucket="plant", Key=key)["UploadId"]}
    return at, {n: S3.upload_part(**at, PartNumber=n, Body=body)["ETag"] for n, body in parts.items()}


def named(tags):
    return {"Parts": [{"PartNumber": n, "ETag": tag} for n, tag in sorted(tags.items())]}


def races():
    one, two = data(6 << 20, 21), data(1_000_000, 22)
    at, tags = begin("race/slow", {1: one})
    finish = slow_part(at, 1, one)
    S3.complete_multipart_upload(**at, MultipartUpload=named(tags))
    status, text = finish()
    holds("S5 a part that ends after Complete is NoSuchUpload", status == 404 and "<Code>NoSuchUpload</Code>" in text)
    at, tags = begin("race/aborted", {1: one})
    finish = slow_part(at, 1, one)
    S3.abort_multipart_upload(**at)
    status, text = finish()
    holds("S5 and after Abort", status == 404 and "<Code>NoSuchUpload</Code>" in text)
    refused("NoSuchKey", 404, S3.get_object, Bucket="plant", Key="race/aborted")
    for turn in range(6):
        key = f"race/two/{turn}"
        at, tags = begin(key, {1: one, 2: two})
        lists, answers = [tags, {1: tags[1]}], {}

        def complete(index):
            try:
                answers[index] = S3.complete_multipart_upload(**at, MultipartUpload=named(lists[index]))["ETag"]
            except botocore.exceptions.ClientError as error:
                assert error.response["Error"]["Code"] == "NoSuchUpload", error
        threads = [threading.Thread(target=complete, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [(won, etag)] = answers.items()
        assert S3.head_object(Bucket="plant", Key=key)["ETag"] == etag
    time.sleep(0.5)
    holds("S5 of two lists that complete an upload at once one wins",
          all(get(f"race/two/{turn}") in (one, one + two) for turn in range(6)))
    holds("S5 and the object of a slow part is whole", get("race/slow") == one)
    at, tags = begin("race/same", {1: one, 2: two})
    for _ in range(2):
        S3.complete_multipart_upload(**at, MultipartUpload=named(tags))
    S3.put_object(Bucket="plant", Key="race/same", Body=b"newer")
    S3.complete_multipart_upload(**at, MultipartUpload=named(tags))
    holds("S5 a repeated Complete does not bring back what was replaced", get("race/same") == b"newer")


def conditions():
    etag = S3.put_object(Bucket="plant", Key="if", Body=b"first")["ETag"]
    refused("PreconditionFailed", 412, S3.delete_object, Bucket="plant", Key="if", IfMatch='"nope"')
    refused("InvalidArgument", 400, S3.delete_object, Bucket="plant", Key="if", VersionId="abc")
    refused("InvalidArgument", 400, S3.get_object, Bucket="plant", Key="if", VersionId="abc")
    many = S3.delete_objects(Bucket="plant", Delete={"Objects": [
        {"Key": "if", "ETag": '"nope"'}, {"Key": "if", "VersionId": "abc"}, {"Key": "not-there"}]})
    codes = sorted(error["Code"] for error in many["Errors"])
    holds("S2 a delete holds its conditions", codes == ["InvalidArgument", "PreconditionFailed"]
          and [d["Key"] for d in many["Deleted"]] == ["not-there"] and get("if") == b"first")
    S3.put_object(Bucket="plant", Key="from", Body=b"second")

    def copy(**headers):
        headers = {"x-amz-copy-source": "plant/from"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return http("PUT", "/plant/if", b"", signed("PUT", "/plant/if", b"", headers))[0]

    assert copy(if_none_match="*") == 412 and copy(if_match='"nope"') == 412
    assert copy(x_amz_copy_source_if_match='"nope"') == 412
    assert copy(x_amz_copy_source_if_none_match="*") == 412
    holds("S2 so does a copy", get("if") == b"first")
    assert copy(if_match=etag) == 200
    holds("S2 and is done if they hold", get("if") == b"second")
    at, tags = begin("if", {1: b"third"})
    complete = S3.complete_multipart_upload
    refused("PreconditionFailed", 412, complete, **at, MultipartUpload=named(tags), IfNoneMatch="*")
    holds("S5 so does Complete", get("if") == b"second")
    S3.delete_object(Bucket="plant", Key="if", IfMatch=S3.head_object(Bucket="plant", Key="if")["ETag"])
    complete(**at, MultipartUpload=named(tags), IfNoneMatch="*")
    holds("S5 and it can complete later", get("if") == b"third")


def listings():
    for n in range(25):
        S3.put_object(Bucket="with.dots", Key=f"a/{n:02}", Body=b"x")
    pages = list(S3.get_paginator("list_objects_v2").paginate(Bucket="with.dots", PaginationConfig={"PageSize": 10}))
    keys = [o["Key"] for page in pages for o in page["Contents"]]
    holds("list v2 in pages", keys == [f"a/{n:02}" for n in range(25)] + ["copy"] and len(pages) == 3)
    page = S3.list_objects_v2(Bucket="with.dots", Delimiter="/")
    holds("list v2 with a delimiter", [p["Prefix"] for p in page["CommonPrefixes"]] == ["a/"] and page["KeyCount"] == 2)
    found = [o["Key"] for o in S3.list_objects_v2(Bucket="plant", Prefix="ä")["Contents"]]
    holds("list v2 of odd keys", found == [ODD])
    refused("BucketNotEmpty", 409, S3.delete_bucket, Bucket="with.dots")
    gone = S3.delete_objects(Bucket="with.dots", Delete={"Objects": [{"Key": k} for k in keys]})
    holds("many are deleted at once", len(gone["Deleted"]) == 26)
    S3.delete_bucket(Bucket="with.dots")


def acceptance():
    policies()
    buckets()
    objects()
    signatures()
    ranges()
    multipart()
    races()
    conditions()
    listings()
    S3.create_bucket(Bucket="open", CreateBucketConfiguration={"LocationConstraint": "plain-edge"})
    S3.put_object(Bucket="open", Key="open", Body=b"nothing secret here. " * 1000)
    holds("S12 both kinds work", get("open", "open") == b"nothing secret here. " * 1000)
    S3.put_object(Bucket="plant", Key="secret", Body=b"something secret here. " * 1000)
    S3.put_object(Bucket="plant", Key="kept", Body=data(3_000_000, 5))
    S3.put_object(Bucket="plant", Key="unread", Body=data(3_000_000, 6))


def large():
    size = int(sys.argv[5])
    body = data(size, 3)
    S3.upload_fileobj(io.BytesIO(body), "plant", "big", Config=boto3.s3.transfer.TransferConfig(
        multipart_chunksize=8 << 20, max_concurrency=4))
    digest = hashlib.sha256()
    for chunk in S3.get_object(Bucket="plant", Key="big")["Body"].iter_chunks(1 << 20):
        digest.update(chunk)
    holds(f"S2 an object of {size} bytes comes back", digest.digest() == hashlib.sha256(body).digest())
    S3.delete_object(Bucket="plant", Key="big")


def second():
    other = Minio(ENDPOINT.removeprefix("http://"), access_key=ACCESS, secret_key=SECRET, secure=False, region="local")
    body = data(12_000_000, 9)
    other.put_object("plant", "from-minio", io.BytesIO(body), len(body), part_size=5 << 20)
    holds("minio: a multipart put and a get", other.get_object("plant", "from-minio").read() == body)
    answer = other.get_object("plant", "from-minio", offset=5_000_000, length=1_000)
    holds("minio: a range", answer.read() == body[5_000_000:5_001_000])
    listed = [o.object_name for o in other.list_objects("plant", prefix="from-", recursive=True)]
    holds("minio: a listing", listed == ["from-minio"])
    holds("minio: what the other wrote", other.get_object("plant", "kept").read() == data(3_000_000, 5))
    other.remove_object("plant", "from-minio")
    refused("NoSuchKey", 404, S3.get_object, Bucket="plant", Key="from-minio")


def read():
    assert get("kept") == data(3_000_000, 5)
    assert get("secret") == b"something secret here. " * 1000
    assert get("size/8388609") == data(8388609, 8388609)
    holds("every object is as it was")


def cached():
    """With no location left: what was read before comes from the cache, and nothing else comes at all."""
    assert get("kept") == data(3_000_000, 5)
    refused("ServiceUnavailable", 503, S3.get_object, Bucket="plant", Key="unread")
    holds("S11 a second read comes from the cache, without a location")


def lost():
    printed = refused("ServiceUnavailable", 503, S3.get_object, Bucket="plant", Key="kept")
    holds("a clean error: " + printed, "good fragments are needed" in printed)


def writer():
    """Puts objects until it is killed or the gateway stops; prints each one that was acknowledged."""
    begin = int(sys.argv[5])
    for n in range(begin, begin + 100_000):
        body = data(random.Random(n).choice([10, 70_000, 900_000, 9_000_000]), n)
        digest = hashlib.md5(body).hexdigest()
        print("sent", n, digest, flush=True)
        try:
            S3.put_object(Bucket="plant", Key=f"w/{n}", Body=body)
            print("acked", n, digest, flush=True)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            return


def check():
    """Of what the writers printed: every acknowledged object is whole, and every visible one is one that was sent."""
    lines = [line.split() for line in open(sys.argv[5]) if line.startswith(("sent", "acked"))]
    sent = {n: digest for _, n, digest in lines}
    acked = {n for what, n, _ in lines if what == "acked"}
    seen = set()
    for page in S3.get_paginator("list_objects_v2").paginate(Bucket="plant", Prefix="w/"):
        for entry in page.get("Contents", []):
            n = entry["Key"].rsplit("/", 1)[1]
            body = get(entry["Key"])
            assert hashlib.md5(body).hexdigest() == sent[n] and len(body) == entry["Size"], entry
            seen.add(n)
    assert acked <= seen, sorted(acked - seen)
    holds(f"{len(acked)} acknowledged objects are whole, of {len(seen)} that are visible")


CHECKSUMS = {
    "CRC32": lambda b: zlib.crc32(b).to_bytes(4, "big"),
    "SHA1": lambda b: hashlib.sha1(b).digest(),
    "SHA256": lambda b: hashlib.sha256(b).digest(),
}


def b64(value):
    return base64.b64encode(value).decode()


def ask(method, path, body=b"", headers=None, payload=None, region="local", send=None, prefix=""):
    """A signed request, whatever it says; gives status, headers and body. `send` is what goes over the wire."""
    request = botocore.awsrequest.AWSRequest(method, ENDPOINT + prefix + path, data=body, headers=headers or {})
    request.headers["x-amz-content-sha256"] = payload or hashlib.sha256(body).hexdigest()
    botocore.auth.S3SigV4Auth(CREDENTIALS, "s3", region).add_auth(request)
    # The signer computes the digest of what it is given; what was asked for is signed here.
    if payload:
        del request.headers["Authorization"]
        signer = botocore.auth.S3SigV4Auth(CREDENTIALS, "s3", region)
        signer.payload = lambda _: payload
        signer.add_auth(request)
    connection = HTTPConnection(ENDPOINT.removeprefix("http://"), timeout=60)
    sent = body if send is None else send
    connection.putrequest(method, prefix + path, skip_accept_encoding=True, skip_host=True)
    connection.putheader("Host", ENDPOINT.removeprefix("http://"))
    for name, value in dict(request.headers).items():
        if name.lower() not in ("host", "content-length"):
            connection.putheader(name, value)
    connection.putheader("Content-Length", str(len(sent)))
    connection.endheaders()
    connection.send(sent)
    answer = connection.getresponse()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode("utf8", "replace")


def code(answer):
    found = re.search("<Code>(.*?)</Code>", answer[2])
    return (answer[0], found[1]) if found else answer[0]


UNSIGNED = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


def framed(body, trailer="", last=True):
    return (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + (f"0\r\n{trailer}\r\n".encode() if last else b"")


def chunked(key, body, sent, length=None, **headers):
    headers = {k.replace("_", "-"): v for k, v in headers.items()}
    headers |= {"content-encoding": "aws-chunked",
                "x-amz-decoded-content-length": str(len(body) if length is None else length)}
    return ask("PUT", key, headers=headers, payload=UNSIGNED, send=sent)


def digests():
    body = b"123456789"
    wrong = {"CRC32": b64(bytes(4)), "CRC32C": b64(bytes(4)), "CRC64NVME": b64(bytes(8)), "SHA1": b64(bytes(20)),
             "SHA256": b64(bytes(32))}
    right = {"CRC32": "y/Q5Jg==", "CRC32C": "4waSgw==", "CRC64NVME": "rosUhgp5mIg=",
             "SHA1": b64(hashlib.sha1(body).digest()), "SHA256": b64(hashlib.sha256(body).digest())}
    at, _ = begin("sums/part", {})
    part = f"/plant/sums/part?partNumber=1&uploadId={at['UploadId']}"
    for name, value in wrong.items():
        header = f"x-amz-checksum-{name.lower()}"
        for path in ("/plant/sums/none", part):
            assert code(ask("PUT", path, body, {header: value})) == (400, "BadDigest"), name
            assert code(ask("PUT", path, body, {header: "AAA"})) == (400, "InvalidRequest"), name
            trailer = chunked(path, body, framed(body, f"{header}:{value}\r\n"), x_amz_trailer=header)
            assert code(trailer) == (400, "BadDigest"), (name, trailer)
            trailer = chunked(path, body, framed(body), x_amz_trailer=header)
            assert code(trailer) == (400, "MalformedTrailerError"), (name, trailer)
            found = chunked(path, body, framed(body, f"{header}:{right[name]}\r\n"), x_amz_trailer=header)
            assert found[0] == 200 and found[1][header] == right[name], (name, found)
        S3.delete_object(Bucket="plant", Key="sums/none")
        found = ask("PUT", f"/plant/sums/{name}", body, {header: right[name]})
        assert found[0] == 200 and found[1][header] == right[name], found
        found = ask("HEAD", f"/plant/sums/{name}", headers={"x-amz-checksum-mode": "ENABLED"})
        assert found[1][header] == right[name] and found[1]["x-amz-checksum-type"] == "FULL_OBJECT", found
        assert header not in ask("GET", f"/plant/sums/{name}")[1]
    holds("wrong digests are refused in headers and trailers, right ones are kept and given back")
    for path in ("/plant/sums/none", part):
        for md5, expected in [("AAAA", "InvalidDigest"), (b64(bytes(16)), "BadDigest"), ("", "InvalidDigest")]:
            assert code(ask("PUT", path, body, {"content-md5": md5})) == (400, expected), md5
        crc = {"x_amz_trailer": "x-amz-checksum-crc32"}
        found = chunked(path, body, framed(body, last=False), **crc)
        assert code(found) == (400, "IncompleteBody"), found
        for length in (8, 10):
            found = chunked(path, body, framed(body, f"x-amz-checksum-crc32:{right['CRC32']}\r\n"), length=length, **crc)
            assert code(found) == (400, "IncompleteBody"), (length, found)
        two = {"x-amz-checksum-crc32": right["CRC32"], "x-amz-checksum-sha1": right["SHA1"]}
        assert code(ask("PUT", path, body, two)) == (400, "InvalidRequest")
        assert code(ask("PUT", path, body, {"x-amz-sdk-checksum-algorithm": "SHA1"})) == (400, "InvalidRequest")
    refused("NoSuchKey", 404, S3.get_object, Bucket="plant", Key="sums/none")
    holds("so are broken bodies, and nothing of them is visible")
    xml = b"<Delete><Object><Key>sums/CRC32</Key></Object></Delete>"
    for header, value, expected in [("content-md5", b64(bytes(16)), "BadDigest"), ("content-md5", "x", "InvalidDigest"),
                                    ("x-amz-checksum-crc32", b64(bytes(4)), "BadDigest")]:
        assert code(ask("POST", "/plant?delete", xml, {header: value})) == (400, expected)
    assert get("sums/CRC32") == body
    holds("so is DeleteObjects")
    big = [data(5 << 20, 31), b"the end"]
    for name, kind in [("CRC32", "FULL_OBJECT"), ("CRC32", "COMPOSITE"), ("SHA256", "COMPOSITE"), ("SHA1", "COMPOSITE")]:
        arguments = {"Bucket": "plant", "Key": f"sums/{name}/{kind}"}
        begun = S3.create_multipart_upload(**arguments, ChecksumAlgorithm=name, ChecksumType=kind)
        assert begun["ChecksumAlgorithm"] == name and begun["ChecksumType"] == kind
        here = arguments | {"UploadId": begun["UploadId"]}
        parts = []
        for number, piece in enumerate(big, 1):
            sum_ = b64(CHECKSUMS[name](piece))
            stored = S3.upload_part(**here, PartNumber=number, Body=piece, **{f"Checksum{name}": sum_})
            assert stored[f"Checksum{name}"] == sum_
            parts.append({"PartNumber": number, "ETag": stored["ETag"], f"Checksum{name}": sum_})
        assert S3.list_parts(**here)["Parts"][0][f"Checksum{name}"] == parts[0][f"Checksum{name}"]
        if kind == "COMPOSITE":
            whole = b64(CHECKSUMS[name](b"".join(map(CHECKSUMS[name], big)))) + "-2"
        else:
            whole = b64(CHECKSUMS[name](b"".join(big)))
        bad = [parts[0] | {f"Checksum{name}": parts[1][f"Checksum{name}"]}, parts[1]]
        complete = S3.complete_multipart_upload
        refused("InvalidPart", 400, complete, **here, MultipartUpload={"Parts": bad})
        zero = b64(bytes(len(CHECKSUMS[name](b""))))
        refused("BadDigest", 400, complete, **here, MultipartUpload={"Parts": parts}, **{f"Checksum{name}": zero})
        refused("InvalidRequest", 400, complete, **here, MultipartUpload={"Parts": parts}, MpuObjectSize=1)
        done = complete(**here, MultipartUpload={"Parts": parts}, ChecksumType=kind, MpuObjectSize=sum(map(len, big)))
        found = S3.head_object(**arguments, ChecksumMode="ENABLED")
        assert done[f"Checksum{name}"] == found[f"Checksum{name}"] == whole and found["ChecksumType"] == kind
    refused("InvalidRequest", 400, S3.create_multipart_upload, Bucket="plant", Key="x", ChecksumAlgorithm="SHA1",
            ChecksumType="FULL_OBJECT")
    copied = S3.copy_object(Bucket="plant", Key="sums/copy", CopySource="plant/sums/CRC32/COMPOSITE")
    assert copied["CopyObjectResult"]["ChecksumCRC32"] == b64(CHECKSUMS["CRC32"](b"".join(big)))
    holds("parts, Complete and copies keep checksums, and refuse wrong ones")


def nothing_dropped():
    S3.put_object(Bucket="plant", Key="kept/as/is", Body=b"as it is")
    for headers in [{"x-amz-server-side-encryption-customer-algorithm": "AES256"},
                    {"x-amz-server-side-encryption": "aws:kms"}, {"x-amz-object-lock-mode": "GOVERNANCE"},
                    {"x-amz-object-lock-legal-hold": "ON"}, {"x-amz-website-redirect-location": "/"},
                    {"x-amz-storage-class": "GLACIER"}, {"x-amz-grant-read": "id=1"}, {"x-amz-unknown": "1"}]:
        for method, path in [("PUT", "/plant/kept/as/is"), ("POST", "/plant/kept/as/is?uploads")]:
            assert code(ask(method, path, b"other", headers))[1] == "NotImplemented", headers
    assert code(ask("PUT", "/plant/kept/as/is", b"x", {"x-amz-acl": "public-read"}))[1] == "AccessControlListNotSupported"
    copy = {"x-amz-copy-source": "plant/kept/as/is"}
    for headers, expected in [({"x-amz-metadata-directive": "BOGUS"}, "InvalidArgument"), ({}, "InvalidRequest"),
                              ({"x-amz-tagging": "a=b"}, "InvalidRequest"),
                              ({"x-amz-tagging-directive": "BOGUS"}, "InvalidArgument")]:
        assert code(ask("PUT", "/plant/kept/as/is", b"", copy | headers))[1] == expected, headers
    for path in ["/plant/kept/as/is?legal-hold", "/plant/kept/as/is?torrent", "/plant?inventory&id=a", "/plant?unknown=1",
                 "/plant?list-type=2&unknown", "/plant/kept/as/is?retention"]:
        assert code(ask("GET", path))[1] == "NotImplemented", path
    assert code(ask("PUT", "/newer", b"<CreateBucketConfiguration><Tags/></CreateBucketConfiguration>"))[1] == "NotImplemented"
    assert code(ask("GET", "/plant", headers={"x-amz-expected-bucket-owner": "other"})) == (403, "AccessDenied")
    assert ask("GET", "/plant", headers={"x-amz-expected-bucket-owner": "local"})[0] == 200
    assert get("kept/as/is") == b"as it is"
    holds("what is not acted on is refused, and changes nothing")
    put = S3.put_object(Bucket="plant", Key="kept/head", Body=b"x", Expires="Wed, 21 Oct 2026 07:28:00 GMT",
                        ServerSideEncryption="AES256", StorageClass="STANDARD", ContentEncoding="aws-chunked,gzip")
    found = ask("GET", "/plant/kept/head")
    assert put["ServerSideEncryption"] == found[1]["x-amz-server-side-encryption"] == "AES256"
    assert found[1]["expires"] == "Wed, 21 Oct 2026 07:28:00 GMT" and found[1]["content-encoding"] == "gzip", found
    ask("PUT", "/plant/kept/head", b"x", {"content-encoding": "aws-chunked"})
    assert "content-encoding" not in ask("GET", "/plant/kept/head")[1]
    holds("what is acted on comes back")


def reads():
    S3.put_object(Bucket="plant", Key="read/ten", Body=b"0123456789", CacheControl="no-store")
    S3.put_object(Bucket="plant", Key="read/empty", Body=b"")
    found = ask("GET", "/plant/read/ten")
    etag, modified = found[1]["etag"], found[1]["last-modified"]
    old = "Sunday, 06-Nov-94 08:49:37 GMT"
    for headers, status, body in [
            ({"range": "bytes=2-4", "if-range": etag}, 206, "234"), ({"range": "bytes=2-4", "if-range": '"x"'}, 200, None),
            ({"range": "bytes=2-4", "if-range": modified}, 206, "234"), ({"range": "bytes=2-4", "if-range": old}, 200, None),
            ({"if-match": f'"x", {etag}'}, 200, None), ({"if-none-match": f'"x", W/{etag}'}, 304, ""),
            ({"if-modified-since": old}, 200, None), ({"if-unmodified-since": old}, 412, 0),
            ({"range": "bytes=5-2"}, 200, None), ({"range": "items=0-1"}, 200, None),
            ({"range": "bytes=7-99999999999999999999999"}, 206, "789"), ({"range": "bytes=10-"}, 416, 0),
            ({"range": "bytes=0-0,2-2"}, 200, None), ({"range": "bytes=-0"}, 416, 0)]:
        got = ask("GET", "/plant/read/ten", headers=headers)
        assert got[0] == status and (body == 0 or got[2] == ("0123456789" if body is None else body)), (headers, got)
        if status == 416:
            assert got[1]["content-range"] == "bytes */10", got
        if status == 304:
            assert got[1]["etag"] == etag and got[1]["cache-control"] == "no-store", got
        head = ask("HEAD", "/plant/read/ten", headers=headers)
        assert head[0] == status and (status >= 300 or head[1].get("content-length") == got[1].get("content-length")), head
        assert head[1].get("content-range") == got[1].get("content-range") and head[2] == "", head
    assert code(ask("GET", "/plant/read/empty", headers={"range": "bytes=-5"})) == (416, "InvalidRange")
    holds("conditions and ranges are those of RFC 9110 and S3")
    one, two = data(5 << 20, 41), b"second"
    at, tags = begin("read/parts", {1: one, 2: two})
    S3.complete_multipart_upload(**at, MultipartUpload=named(tags))
    found = S3.get_object(Bucket="plant", Key="read/parts", PartNumber=2)
    assert found["Body"].read() == two and found["PartsCount"] == 2
    assert found["ContentRange"] == f"bytes {len(one)}-{len(one) + 5}/{len(one) + 6}"
    found = S3.head_object(Bucket="plant", Key="read/parts", PartNumber=1)
    assert found["ContentLength"] == len(one) and found["PartsCount"] == 2
    assert get("read/ten", PartNumber=1) == b"0123456789"
    refused("InvalidPartNumber", 416, S3.get_object, Bucket="plant", Key="read/parts", PartNumber=3)
    both = ask("GET", "/plant/read/parts?partNumber=1", headers={"range": "bytes=0-1"})
    assert code(both) == (400, "InvalidRequest"), both
    holds("a part is read by its number")


def copies():
    source = data((12 << 20) + 5, 51)
    S3.put_object(Bucket="plant", Key="copy/from", Body=source)
    config = boto3.s3.transfer.TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=6 << 20)
    S3.copy({"Bucket": "plant", "Key": "copy/from"}, "plant", "copy/to", Config=config)
    assert get("copy/to") == source and S3.head_object(Bucket="plant", Key="copy/to")["ETag"].endswith('-3"')
    at, _ = begin("copy/ranges", {})
    part = {**at, "CopySource": "plant/copy/from"}
    ranges = [(0, (5 << 20) - 1), (7, 11)]
    tags = {n: S3.upload_part_copy(**part, PartNumber=n, CopySourceRange=f"bytes={a}-{b}")["CopyPartResult"]["ETag"]
            for n, (a, b) in enumerate(ranges, 1)}
    refused("InvalidRange", 416, S3.upload_part_copy, **part, PartNumber=3, CopySourceRange=f"bytes=0-{len(source)}")
    for wrong in ["bytes=5-2", "bytes=-3", "0-4"]:
        refused("InvalidArgument", 400, S3.upload_part_copy, **part, PartNumber=3, CopySourceRange=wrong)
    refused("PreconditionFailed", 412, S3.upload_part_copy, **part, PartNumber=3, CopySourceIfMatch='"x"')
    refused("NoSuchKey", 404, S3.upload_part_copy, **part | {"CopySource": "plant/copy/nothing"}, PartNumber=3)
    S3.complete_multipart_upload(**at, MultipartUpload=named(tags))
    assert get("copy/ranges") == b"".join(source[a:b + 1] for a, b in ranges)
    holds("parts are copied, whole and in ranges")


def lists():
    for key in ["odd/a+b%2B", "odd/\u0001", "odd/<&>\r", "odd/d+/1"]:
        S3.put_object(Bucket="plant", Key=key, Body=b"x")
    for version in ("", "list-type=2&"):
        start = "start-after" if version else "marker"
        path = f"/plant?{version}prefix=odd%2Fd%2B&delimiter=%2B&encoding-type=url&{start}=odd%2Fa%2B"
        text = ask("GET", path)[2]
        assert "<Prefix>odd/d%2B</Prefix>" in text and "<Delimiter>%2B</Delimiter>" in text, text
        assert ("<StartAfter>" if version else "<Marker>") + "odd/a%2B</" in text, text
        text = ask("GET", f"/plant?{version}prefix=odd%2F&encoding-type=url")[2]
        assert "<Key>odd/%01</Key>" in text and "<Key>odd/a%2Bb%252B</Key>" in text, text
        text = ask("GET", f"/plant?{version}prefix=odd%2F")[2]
        assert "<Key>odd/&#x1;</Key>" in text and "<Key>odd/&lt;&amp;&gt;&#xd;</Key>" in text, text
        assert code(ask("GET", f"/plant?{version}encoding-type=bogus")) == (400, "InvalidArgument")
        assert ("<Owner>" in text) == (version == ""), text
    assert "<Owner>" in ask("GET", "/plant?list-type=2&fetch-owner=true&prefix=odd%2F")[2]
    assert "<Name>" in ask("GET", "/?max-buckets=1&prefix=pl")[2]
    pages = S3.get_paginator("list_object_versions").paginate(Bucket="plant", Prefix="odd/", PaginationConfig={"PageSize": 1})
    versions = [v for page in pages for v in page["Versions"]]
    assert [v["Key"] for v in versions] == ["odd/\u0001", "odd/<&>\r", "odd/a+b%2B", "odd/d+/1"], versions
    assert all(v["VersionId"] == "null" and v["IsLatest"] for v in versions)
    holds("listings echo what was asked as S3 does")
    ns = "http://s3.amazonaws.com/doc/2006-03-01/"
    xml = (f"<?xml version='1.0'?><s:Delete xmlns:s='{ns}'><!-- c --><s:Object><s:Key><![CDATA[odd/a+b%2B]]></s:Key>"
           "</s:Object><s:Object><s:Key>odd/&#60;&amp;&gt;&#13;</s:Key></s:Object></s:Delete>").encode()
    done = ask("POST", "/plant?delete", xml)
    assert done[0] == 200 and done[2].count("<Deleted>") == 2 and "<Error>" not in done[2], done
    text = ask("GET", "/plant?prefix=odd%2F")[2]
    assert text.count("<Key>") == 2, text
    assert code(ask("POST", "/plant?delete", b"<Delete><Object><Key>a</Key><Odd/></Object></Delete>")) == (400, "MalformedXML")
    holds("XML is XML")


def signing():
    for days, status in [(7, 200), (8, 400)]:
        for version in ("s3v4", "s3"):
            other = boto3.client("s3", endpoint_url=ENDPOINT, aws_access_key_id=ACCESS, aws_secret_access_key=SECRET,
                                 region_name="local", config=Config(signature_version=version))
            url = other.generate_presigned_url("get_object", Params={"Bucket": "plant", "Key": "kept"},
                                               ExpiresIn=days * 86_400)
            assert http("GET", url.removeprefix(ENDPOINT))[0] == status, (days, version)
    holds("a presigned URL is valid for a week at most")
    for region in ["US", "eu-west-1", "Any_Where"]:
        put = ask("PUT", "/plant/region/a%20b", b"x", {"x-amz-meta-a": " b  c "}, region=region)
        assert put[0] == 200, (region, put)
        assert ask("GET", "/plant?prefix=region%2F&max-keys=1", region=region)[0] == 200
        url = boto3.client("s3", endpoint_url=ENDPOINT, aws_access_key_id=ACCESS, aws_secret_access_key=SECRET,
                           region_name="eu-west-1", config=Config(signature_version="s3v4"))
        url = url.generate_presigned_url("get_object", Params={"Bucket": "plant", "Key": "region/a b"})
        assert http("GET", url.removeprefix(ENDPOINT))[0] == 200
    wrong = signed("GET", "/plant/kept", b"")
    wrong["Authorization"] = wrong["Authorization"].replace("/local/", "/US/")
    assert http("GET", "/plant/kept", headers=wrong)[0] == 403
    holds("any region is taken that the signature is over, and no other")
    assert ask("PUT", "/plant/slash", b"slash", prefix="/s3")[0] == 200 and get("slash") == b"slash"
    assert ask("GET", "/plant/slash", prefix="/s3")[2] == "slash"
    assert "<Name>plant</Name>" in ask("GET", "/", prefix="/s3")[2]
    before = boto3.client("s3", endpoint_url=ENDPOINT + "/s3", aws_access_key_id=ACCESS, aws_secret_access_key=SECRET,
                          region_name="local")
    assert before.get_object(Bucket="plant", Key="slash")["Body"].read() == b"slash"
    assert [o["Key"] for o in before.list_objects_v2(Bucket="plant", Prefix="slash")["Contents"]] == ["slash"]
    before.upload_fileobj(io.BytesIO(data(9 << 20, 3)), "plant", "slash/big")
    assert get("slash/big") == data(9 << 20, 3)
    url = before.generate_presigned_url("get_object", Params={"Bucket": "plant", "Key": "slash"})
    assert "/s3/plant/" in url and http("GET", url.removeprefix(ENDPOINT)) == (200, "slash")
    holds("/s3/ may stand before the bucket")


def upload(bucket, key, parts, **arguments):
    """An object of parts; gives the answer to Complete."""
    begun = S3.create_multipart_upload(Bucket=bucket, Key=key, **arguments)
    at = {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"]}
    of_parts = {"ChecksumAlgorithm": arguments.get("ChecksumAlgorithm", "CRC32")}
    tags = {n: S3.upload_part(**at, PartNumber=n, Body=body, **of_parts)["ETag"] for n, body in parts.items()}
    return S3.complete_multipart_upload(**at, MultipartUpload=named(tags))


def bucket(name, policy="hybrid", by=None):
    (by or S3).create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": policy})


def versions_of(key, bucket="kept", **arguments):
    """Versions and delete markers of a key, the latest first, from pages of any size."""
    seen = []
    for size in (1, 2, 1000):
        pages = S3.get_paginator("list_object_versions").paginate(
            Bucket=bucket, Prefix=key, PaginationConfig={"PageSize": size}, **arguments)
        lines = [(v["VersionId"], v["IsLatest"], "ETag" in v, v["LastModified"]) for page in pages
                 for v in page.get("Versions", []) + page.get("DeleteMarkers", []) if v["Key"] == key]
        seen.append(sorted(lines))
    assert seen[0] == seen[1] == seen[2], seen
    return {version: (latest, has_bytes) for version, latest, has_bytes, _ in seen[0]}


def versioned():
    bucket("kept")
    configure = S3.put_bucket_versioning
    old = S3.put_object(Bucket="kept", Key="a", Body=b"old")
    assert "VersionId" not in old and "VersionId" not in S3.get_object(Bucket="kept", Key="a")
    assert "Status" not in S3.get_bucket_versioning(Bucket="kept")
    for wrong in ("On", ""):
        refused("IllegalVersioningConfigurationException", 400, configure, Bucket="kept",
                VersioningConfiguration={"Status": wrong})
    refused("NotImplemented", 501, configure, Bucket="kept", VersioningConfiguration={
        "Status": "Enabled", "MFADelete": "Enabled"})
    refused("NoSuchBucket", 404, configure, Bucket="nothing", VersioningConfiguration={"Status": "Enabled"})
    configure(Bucket="kept", VersioningConfiguration={"Status": "Enabled"}, ChecksumAlgorithm="SHA256")
    assert S3.get_bucket_versioning(Bucket="kept")["Status"] == "Enabled"
    ids = [S3.put_object(Bucket="kept", Key="a", Body=body)["VersionId"] for body in (b"one", b"two")]
    assert len(set(ids)) == 2 and get("a", "kept") == b"two" and get("a", "kept", VersionId="null") == b"old"
    assert [get("a", "kept", VersionId=v) for v in ids] == [b"one", b"two"]
    head = S3.head_object(Bucket="kept", Key="a", VersionId=ids[0])
    assert head["VersionId"] == ids[0] and head["ContentLength"] == 3
    assert S3.get_object(Bucket="kept", Key="a")["VersionId"] == ids[1]
    assert versions_of("a") == {ids[1]: (True, True), ids[0]: (False, True), "null": (False, True)}
    holds("versions: a put keeps what it replaces, and each version is read by its id")
    refused("NoSuchVersion", 404, S3.get_object, Bucket="kept", Key="a", VersionId="0" * 32)
    refused("404", 404, S3.head_object, Bucket="kept", Key="a", VersionId="0" * 32)
    for wrong in ("abc", ids[0].upper()):
        refused("InvalidArgument", 400, S3.get_object, Bucket="kept", Key="a", VersionId=wrong)
    assert code(ask("GET", "/kept/a?versionId=")) == (400, "InvalidArgument")
    marker = S3.delete_object(Bucket="kept", Key="a")
    assert marker["DeleteMarker"] and marker["VersionId"] not in ids
    for call in (S3.get_object, S3.head_object):
        try:
            call(Bucket="kept", Key="a")
            raise SystemExit("a deleted object is read")
        except botocore.exceptions.ClientError as error:
            answer = error.response
            assert answer["ResponseMetadata"]["HTTPStatusCode"] == 404, answer
            assert headers_of(answer)["x-amz-delete-marker"] == "true"
            assert headers_of(answer)["x-amz-version-id"] == marker["VersionId"]
    found = ask("GET", f"/kept/a?versionId={marker['VersionId']}")
    assert code(found) == (405, "MethodNotAllowed") and found[1]["x-amz-delete-marker"] == "true", found
    assert found[1]["allow"] == "DELETE" and "last-modified" in found[1], found
    assert ask("HEAD", f"/kept/a?versionId={marker['VersionId']}")[0] == 405
    assert "Contents" not in S3.list_objects_v2(Bucket="kept") and get("a", "kept", VersionId=ids[1]) == b"two"
    assert versions_of("a")[marker["VersionId"]] == (True, False)
    holds("versions: a delete hides, and what it hides is there")
    refused("BucketNotEmpty", 409, S3.delete_bucket, Bucket="kept")
    put = S3.put_object
    refused("NoSuchKey", 404, put, Bucket="kept", Key="a", Body=b"x", IfMatch="*")
    again = put(Bucket="kept", Key="a", Body=b"three", IfNoneMatch="*")["VersionId"]
    refused("PreconditionFailed", 412, put, Bucket="kept", Key="a", Body=b"x", IfNoneMatch="*")
    refused("PreconditionFailed", 412, put, Bucket="kept", Key="a", Body=b"x", IfMatch=old["ETag"])
    refused("PreconditionFailed", 412, S3.delete_object, Bucket="kept", Key="a", IfMatch=old["ETag"])
    assert S3.delete_object(Bucket="kept", Key="a", VersionId=again)["VersionId"] == again
    gone = S3.delete_object(Bucket="kept", Key="a", VersionId=marker["VersionId"])
    assert gone["DeleteMarker"] and gone["VersionId"] == marker["VersionId"] and get("a", "kept") == b"two"
    assert S3.delete_object(Bucket="kept", Key="a", VersionId=again)["VersionId"] == again
    holds("versions: conditions are on what is visible; without its marker a version is visible again")
    copy = S3.copy_object(Bucket="kept", Key="a", CopySource={"Bucket": "kept", "Key": "a", "VersionId": ids[0]})
    assert copy["CopySourceVersionId"] == ids[0] and copy["VersionId"] not in ids and get("a", "kept") == b"one"
    hidden = S3.delete_object(Bucket="kept", Key="hidden")["VersionId"]
    refused("InvalidRequest", 400, S3.copy_object, Bucket="kept", Key="b",
            CopySource={"Bucket": "kept", "Key": "hidden", "VersionId": hidden})
    refused("NoSuchKey", 404, S3.copy_object, Bucket="kept", Key="b", CopySource="kept/hidden")
    one, two = data(5 << 20, 71), b"two"
    first, second = upload("kept", "parts", {1: one, 2: two}), upload("kept", "parts", {1: two})
    assert first["VersionId"] != second["VersionId"] and get("parts", "kept") == two
    assert get("parts", "kept", VersionId=first["VersionId"]) == one + two
    part = S3.get_object(Bucket="kept", Key="parts", VersionId=first["VersionId"], PartNumber=2)
    assert part["Body"].read() == two and part["PartsCount"] == 2
    begun = S3.create_multipart_upload(Bucket="kept", Key="copied")
    at = {"Bucket": "kept", "Key": "copied", "UploadId": begun["UploadId"]}
    source = {"Bucket": "kept", "Key": "parts", "VersionId": first["VersionId"]}
    done = S3.upload_part_copy(**at, PartNumber=1, CopySource=source)
    assert done["CopySourceVersionId"] == first["VersionId"]
    S3.complete_multipart_upload(**at, MultipartUpload=named({1: done["CopyPartResult"]["ETag"]}))
    assert get("copied", "kept") == one + two
    holds("versions: of copies and of uploads")
    configure(Bucket="kept", VersioningConfiguration={"Status": "Suspended"})
    assert put(Bucket="kept", Key="a", Body=b"null one")["VersionId"] == "null"
    assert put(Bucket="kept", Key="a", Body=b"null two")["VersionId"] == "null"
    assert get("a", "kept", VersionId="null") == get("a", "kept") == b"null two"
    assert [get("a", "kept", VersionId=v) for v in ids] == [b"one", b"two"]
    null = S3.delete_object(Bucket="kept", Key="a")
    assert null["VersionId"] == "null" and null["DeleteMarker"]
    refused("MethodNotAllowed", 405, S3.get_object, Bucket="kept", Key="a", VersionId="null")
    S3.delete_object(Bucket="kept", Key="a", VersionId="null")
    assert get("a", "kept") == b"one"
    holds("versions: suspended, only the null version is replaced")
    configure(Bucket="kept", VersioningConfiguration={"Status": "Enabled"})
    for n in range(3):
        for _ in range(2):
            put(Bucket="kept", Key=f"list/{n}/x", Body=b"x")
    page = S3.list_object_versions(Bucket="kept", Prefix="list/", Delimiter="/", MaxKeys=2, EncodingType="url")
    assert [p["Prefix"] for p in page["CommonPrefixes"]] == ["list/0/", "list/1/"] and page["IsTruncated"]
    page = S3.list_object_versions(Bucket="kept", Prefix="list/", Delimiter="/", KeyMarker=page["NextKeyMarker"])
    assert [p["Prefix"] for p in page["CommonPrefixes"]] == ["list/2/"] and not page["IsTruncated"]
    page = S3.list_object_versions(Bucket="kept", Prefix="list/", MaxKeys=3)
    assert len(page["Versions"]) == 3 and page["NextKeyMarker"] == "list/1/x", page
    after = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}
    page = S3.list_object_versions(Bucket="kept", Prefix="list/", **after)
    assert [v["Key"] for v in page["Versions"]] == ["list/1/x", "list/2/x", "list/2/x"], page
    assert [v["IsLatest"] for v in page["Versions"]] == [False, True, False]
    refused("InvalidArgument", 400, S3.list_object_versions, Bucket="kept", VersionIdMarker=ids[0])
    refused("InvalidArgument", 400, S3.list_object_versions, Bucket="kept", KeyMarker="a", VersionIdMarker="x")
    holds("versions: lists in pages, with delimiters")
    many = S3.delete_objects(Bucket="kept", Delete={"Objects": [
        {"Key": "list/0/x"}, {"Key": "a", "VersionId": ids[0]}, {"Key": "hidden", "VersionId": hidden},
        {"Key": "a", "VersionId": "abc"}, {"Key": "list/1/x", "ETag": '"nope"'}]})
    by_key = {d["Key"]: d for d in many["Deleted"]}
    assert by_key["list/0/x"]["DeleteMarker"] and by_key["list/0/x"]["DeleteMarkerVersionId"], many
    assert by_key["a"]["VersionId"] == ids[0] and "DeleteMarker" not in by_key["a"], many
    assert by_key["hidden"]["DeleteMarkerVersionId"] == by_key["hidden"]["VersionId"] == hidden, many
    assert sorted((e["Code"], e.get("VersionId")) for e in many["Errors"]) == [
        ("InvalidArgument", "abc"), ("PreconditionFailed", None)], many
    refused("NoSuchVersion", 404, S3.get_object, Bucket="kept", Key="a", VersionId=ids[0])
    holds("versions: many are deleted at once")
    bucket("emptied")
    configure(Bucket="emptied", VersioningConfiguration={"Status": "Enabled"})
    put(Bucket="emptied", Key="a", Body=b"a")
    S3.delete_object(Bucket="emptied", Key="a")
    lines = S3.list_object_versions(Bucket="emptied")
    for line in lines["Versions"] + lines["DeleteMarkers"]:
        S3.delete_object(Bucket="emptied", Key="a", VersionId=line["VersionId"])
    S3.delete_bucket(Bucket="emptied")
    holds("versions: a bucket without any is deleted")
    other = Minio(ENDPOINT.removeprefix("http://"), access_key=ACCESS, secret_key=SECRET, secure=False, region="local")
    bucket("minio-kept")
    other.set_bucket_versioning("minio-kept", VersioningConfig(ENABLED))
    assert other.get_bucket_versioning("minio-kept").status == ENABLED
    ids = [other.put_object("minio-kept", "m", io.BytesIO(body), len(body)).version_id for body in (b"1", b"22")]
    assert other.get_object("minio-kept", "m", version_id=ids[0]).read() == b"1"
    assert other.stat_object("minio-kept", "m").version_id == ids[1]
    other.remove_object("minio-kept", "m")
    listed = list(other.list_objects("minio-kept", include_version=True))
    assert sorted((o.is_delete_marker, str(o.is_latest).lower() == "true", o.size or 0) for o in listed) == [
        (False, False, 1), (False, False, 2), (True, True, 0)], [vars(o) for o in listed]
    other.set_bucket_versioning("minio-kept", VersioningConfig(SUSPENDED))
    assert other.put_object("minio-kept", "m", io.BytesIO(b"n"), 1).version_id == "null"
    tags = Tags.new_object_tags()
    tags["a b"] = "c"
    other.set_object_tags("minio-kept", "m", tags)
    assert dict(other.get_object_tags("minio-kept", "m")) == {"a b": "c"}
    other.delete_object_tags("minio-kept", "m")
    assert other.get_object_tags("minio-kept", "m") is None
    tags = Tags.new_bucket_tags()
    tags["of"] = "bucket"
    other.set_bucket_tags("minio-kept", tags)
    assert dict(other.get_bucket_tags("minio-kept")) == {"of": "bucket"}
    other.delete_bucket_tags("minio-kept")
    assert other.get_bucket_tags("minio-kept") is None
    holds("versions and tags, by a second client")
    # For `versions_whole`, after scrubs.
    S3.put_object(Bucket="kept", Key="whole", Body=data(3_000_000, 81))
    S3.put_object(Bucket="kept", Key="whole", Body=data(3_000_000, 82))
    S3.delete_object(Bucket="kept", Key="whole")


def versions_whole():
    lines = S3.list_object_versions(Bucket="kept", Prefix="whole")
    ids = {v["VersionId"]: v["LastModified"] for v in lines["Versions"]}
    bodies = sorted((get("whole", "kept", VersionId=v) for v in ids), key=lambda b: hashlib.md5(b).digest())
    assert bodies == sorted((data(3_000_000, n) for n in (81, 82)), key=lambda b: hashlib.md5(b).digest())
    first = next(v["VersionId"] for v in S3.list_object_versions(Bucket="kept", Prefix="parts")["Versions"]
                 if not v["IsLatest"])
    assert get("parts", "kept", VersionId=first) == data(5 << 20, 71) + b"two"
    holds("every version is as it was")


def tags_of(**arguments):
    return {t["Key"]: t["Value"] for t in S3.get_object_tagging(**arguments)["TagSet"]}


def tag_set(tags):
    return {"TagSet": [{"Key": k, "Value": v} for k, v in tags.items()]}


def tagged():
    at = {"Bucket": "plant", "Key": "tagged"}
    S3.put_object(**at, Body=b"x", Tagging="a=b&c%20d=e+f")
    assert tags_of(**at) == {"a": "b", "c d": "e f"}
    assert S3.get_object(**at)["TagCount"] == 2
    assert headers_of(S3.head_object(**at))["x-amz-tagging-count"] == "2"
    etag = S3.head_object(**at)["ETag"]
    S3.put_object_tagging(**at, Tagging=tag_set({" k": "v "}), ChecksumAlgorithm="CRC32")
    assert tags_of(**at) == {" k": "v "} and S3.head_object(**at)["ETag"] == etag and get("tagged") == b"x"
    md5 = b64(hashlib.md5(b"other").digest())
    refused("BadDigest", 400, S3.put_object_tagging, **at, Tagging=tag_set({"a": "b"}), ContentMD5=md5)
    for wrong in [{"a?": "b"}, {"x" * 129: "b"}, {"a": "b" * 257}, {"aws:a": "b"}]:
        refused("InvalidTag", 400, S3.put_object_tagging, **at, Tagging=tag_set(wrong))
    twice = {"TagSet": [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}]}
    refused("InvalidTag", 400, S3.put_object_tagging, **at, Tagging=twice)
    refused("BadRequest", 400, S3.put_object_tagging, **at, Tagging=tag_set({str(n): "" for n in range(11)}))
    refused("InvalidTag", 400, S3.put_object, **at, Body=b"y", Tagging="a=1&a=2")
    assert get("tagged") == b"x" and tags_of(**at) == {" k": "v "}
    refused("NoSuchKey", 404, S3.put_object_tagging, Bucket="plant", Key="nothing", Tagging=tag_set({"a": "b"}))
    refused("NoSuchKey", 404, S3.get_object_tagging, Bucket="plant", Key="nothing")
    S3.delete_object_tagging(**at)
    assert tags_of(**at) == {} and "TagCount" not in S3.get_object(**at)
    holds("tags: put, read, replaced, deleted, and within their limits")
    S3.put_object(**at, Body=b"x", Tagging="a=b")
    S3.copy_object(Bucket="plant", Key="tagged/copy", CopySource="plant/tagged")
    assert tags_of(Bucket="plant", Key="tagged/copy") == {"a": "b"}
    S3.copy_object(Bucket="plant", Key="tagged/copy", CopySource="plant/tagged", Tagging="n=1", TaggingDirective="REPLACE")
    assert tags_of(Bucket="plant", Key="tagged/copy") == {"n": "1"}
    S3.copy_object(Bucket="plant", Key="tagged", CopySource="plant/tagged", TaggingDirective="REPLACE")
    assert tags_of(**at) == {}
    upload("plant", "tagged/parts", {1: b"x"}, Tagging="p=q")
    assert tags_of(Bucket="plant", Key="tagged/parts") == {"p": "q"}
    holds("tags: of copies and uploads")
    S3.put_object(Bucket="kept", Key="tagged", Body=b"1")
    old = S3.put_object(Bucket="kept", Key="tagged", Body=b"2", Tagging="v=1")["VersionId"]
    S3.put_object(Bucket="kept", Key="tagged", Body=b"3")
    at = {"Bucket": "kept", "Key": "tagged", "VersionId": old}
    done = S3.put_object_tagging(**at, Tagging=tag_set({"v": "2"}))
    assert done["VersionId"] == old and tags_of(**at) == {"v": "2"} and tags_of(Bucket="kept", Key="tagged") == {}
    assert get("tagged", "kept") == b"3" and S3.delete_object_tagging(**at)["VersionId"] == old
    assert tags_of(**at) == {}
    holds("tags: of a version, which stays in its place")
    refused("NoSuchTagSet", 404, S3.get_bucket_tagging, Bucket="plant")
    S3.put_bucket_tagging(Bucket="plant", Tagging=tag_set({str(n): "v" for n in range(20)}))
    assert len(S3.get_bucket_tagging(Bucket="plant")["TagSet"]) == 20
    refused("BadRequest", 400, S3.put_bucket_tagging, Bucket="plant", Tagging=tag_set({str(n): "" for n in range(51)}))
    S3.delete_bucket_tagging(Bucket="plant")
    refused("NoSuchTagSet", 404, S3.get_bucket_tagging, Bucket="plant")
    holds("tags: of buckets")


def owned():
    S3.put_object(Bucket="plant", Key="owned", Body=b"x")
    for acl in (S3.get_bucket_acl(Bucket="plant"), S3.get_object_acl(Bucket="plant", Key="owned")):
        [grant] = acl["Grants"]
        assert acl["Owner"]["ID"] == grant["Grantee"]["ID"] == "local" and grant["Permission"] == "FULL_CONTROL", acl
        assert grant["Grantee"]["Type"] == "CanonicalUser"
    full = S3_FULL
    more = {"Owner": {"ID": "local"}, "Grants": full["Grants"] + [
        {"Grantee": {"Type": "Group", "URI": "http://acs.amazonaws.com/groups/global/AllUsers"}, "Permission": "READ"}]}
    of_object = {"Bucket": "plant", "Key": "owned"}
    S3.put_object_acl(**of_object, ACL="bucket-owner-full-control")
    S3.put_object_acl(**of_object, AccessControlPolicy=full)
    S3.put_bucket_acl(Bucket="plant", AccessControlPolicy=full)
    no = "AccessControlListNotSupported", 400
    for arguments in [{"ACL": "public-read"}, {"AccessControlPolicy": more}, {"GrantRead": "id=x"},
                      {"GrantFullControl": "id=x"}, {"GrantReadACP": "id=x"}, {"GrantWrite": "id=x"},
                      {"GrantWriteACP": "id=x"}]:
        refused(*no, S3.put_object_acl, **of_object, **arguments)
        refused(*no, S3.put_bucket_acl, Bucket="plant", **arguments)
    refused("NoSuchKey", 404, S3.get_object_acl, Bucket="plant", Key="nothing")
    refused("NoSuchKey", 404, S3.put_object_acl, Bucket="plant", Key="nothing", ACL="bucket-owner-full-control")
    version = S3.put_object(Bucket="kept", Key="owned", Body=b"1")["VersionId"]
    for call, arguments in [(S3.get_object_acl, {}), (S3.put_object_acl, {"ACL": "bucket-owner-full-control"})]:
        call(Bucket="kept", Key="owned", VersionId=version, **arguments)
        refused("NoSuchVersion", 404, call, Bucket="kept", Key="owned", VersionId="0" * 32, **arguments)
    holds("access lists are read, and give the owner everything and nobody else anything")
    rules = S3.get_bucket_ownership_controls(Bucket="plant")["OwnershipControls"]["Rules"]
    assert rules == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    assert set(S3.get_public_access_block(Bucket="plant")["PublicAccessBlockConfiguration"].values()) == {True}
    rules = S3.get_bucket_encryption(Bucket="plant")["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    bucket("plain", "plain-edge")
    for code_, call, where in [
            ("ServerSideEncryptionConfigurationNotFoundError", S3.get_bucket_encryption, "plain"),
            ("NoSuchBucketPolicy", S3.get_bucket_policy, "plant"),
            ("NoSuchBucketPolicy", S3.get_bucket_policy_status, "plant"),
            ("NoSuchLifecycleConfiguration", S3.get_bucket_lifecycle_configuration, "plant"),
            ("NoSuchWebsiteConfiguration", S3.get_bucket_website, "plant"),
            ("ReplicationConfigurationNotFoundError", S3.get_bucket_replication, "plant"),
            ("ObjectLockConfigurationNotFoundError", S3.get_object_lock_configuration, "plant"),
            ("NoSuchCORSConfiguration", S3.get_bucket_cors, "plant")]:
        refused(code_, 404, call, Bucket=where)
        refused("NoSuchBucket", 404, call, Bucket="nothing")
    assert S3.get_bucket_request_payment(Bucket="plant")["Payer"] == "BucketOwner"
    for call in (S3.get_bucket_notification_configuration, S3.get_bucket_logging, S3.get_bucket_accelerate_configuration):
        assert set(call(Bucket="plant")) == {"ResponseMetadata"}, call
        refused("NoSuchBucket", 404, call, Bucket="nothing")
    for call in (S3.delete_bucket_policy, S3.delete_bucket_lifecycle, S3.delete_bucket_website,
                 S3.delete_bucket_replication):
        call(Bucket="plant")
        refused("NoSuchBucket", 404, call, Bucket="nothing")
    refused("NotImplemented", 501, S3.put_bucket_policy, Bucket="plant", Policy="{}")
    assert S3.get_bucket_location(Bucket="plant")["LocationConstraint"] == "hybrid"
    holds("a bucket answers for what it does not have as S3 does")


def attributes():
    every = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"]
    one, two = data(5 << 20, 91), b"the end"
    at = {"Bucket": "kept", "Key": "attributes"}
    sums = [b64(CHECKSUMS["SHA256"](body)) for body in (one, two)]
    done = upload("kept", "attributes", {2: one, 5: two}, ChecksumAlgorithm="SHA256")
    S3.put_object(**at, Body=b"newer", ChecksumCRC32=b64(CHECKSUMS["CRC32"](b"newer")))
    found = S3.get_object_attributes(**at, ObjectAttributes=every)
    assert found["ETag"] == hashlib.md5(b"newer").hexdigest() and found["ObjectSize"] == 5, found
    assert found["Checksum"] == {"ChecksumCRC32": b64(CHECKSUMS["CRC32"](b"newer")), "ChecksumType": "FULL_OBJECT"}
    assert found["StorageClass"] == "STANDARD" and "ObjectParts" not in found and "LastModified" in found
    old = S3.get_object_attributes(**at, VersionId=done["VersionId"], ObjectAttributes=every)
    assert old["VersionId"] == done["VersionId"] and old["ObjectSize"] == len(one + two), old
    assert old["Checksum"]["ChecksumType"] == "COMPOSITE"
    parts = old["ObjectParts"]
    assert parts["TotalPartsCount"] == 2 and not parts["IsTruncated"], parts
    assert parts["Parts"] == [{"PartNumber": n, "Size": len(b), "ChecksumSHA256": c}
                              for n, b, c in [(2, one, sums[0]), (5, two, sums[1])]], parts
    page = S3.get_object_attributes(**at, VersionId=done["VersionId"], ObjectAttributes=["ObjectParts"], MaxParts=1)
    assert set(page) & set(every) == {"ObjectParts"} and page["ObjectParts"]["IsTruncated"], page
    marker = page["ObjectParts"]["NextPartNumberMarker"]
    page = S3.get_object_attributes(**at, VersionId=done["VersionId"], ObjectAttributes=["ObjectParts"],
                                    PartNumberMarker=marker)
    assert marker == 2 and [p["PartNumber"] for p in page["ObjectParts"]["Parts"]] == [5]
    refused("InvalidArgument", 400, S3.get_object_attributes, **at, ObjectAttributes=["Bogus"])
    refused("NoSuchKey", 404, S3.get_object_attributes, Bucket="kept", Key="nothing", ObjectAttributes=["ETag"])
    at, _ = begin("attributes", {})
    part = ask("PUT", f"/plant/attributes?partNumber=1&uploadId={at['UploadId']}", b"x")
    S3.complete_multipart_upload(**at, MultipartUpload=named({1: part[1]["etag"]}))
    found = S3.get_object_attributes(Bucket="plant", Key="attributes", ObjectAttributes=every)
    assert found["ObjectParts"] == {"TotalPartsCount": 1} and "VersionId" not in found, found
    holds("attributes of an object, its parts and its versions")


def origins():
    rules = [{"ID": "one", "AllowedOrigins": ["http://*.example.com"], "AllowedMethods": ["PUT", "GET"],
              "AllowedHeaders": ["x-amz-*", "content-type"], "ExposeHeaders": ["ETag"], "MaxAgeSeconds": 60},
             {"AllowedOrigins": ["*"], "AllowedMethods": ["GET"]}]
    asks = {"Origin": "http://www.example.com", "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "x-amz-date, Content-Type"}

    def preflight(headers, path="/plant/k"):
        connection = HTTPConnection(ENDPOINT.removeprefix("http://"), timeout=60)
        connection.request("OPTIONS", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()
    assert code(preflight(asks)) == (403, "AccessForbidden")
    S3.put_bucket_cors(Bucket="plant", CORSConfiguration={"CORSRules": rules}, ChecksumAlgorithm="CRC32")
    assert S3.get_bucket_cors(Bucket="plant")["CORSRules"] == rules
    md5 = b64(hashlib.md5(b"other").digest())
    refused("BadDigest", 400, S3.put_bucket_cors, Bucket="plant", CORSConfiguration={"CORSRules": rules}, ContentMD5=md5)
    for wrong, why in [({"AllowedMethods": ["PATCH"]}, "InvalidRequest"), ({"AllowedOrigins": ["*.*"]}, "InvalidRequest"),
                       ({"AllowedMethods": []}, "MalformedXML")]:
        refused(why, 400, S3.put_bucket_cors, Bucket="plant", CORSConfiguration={"CORSRules": [rules[1] | wrong]})
    for path in ("/plant/k", "/s3/plant/k", "/plant"):
        found = preflight(asks, path)
        told = found[1]
        assert found[0] == 200 and told["access-control-allow-origin"] == "http://www.example.com", found
        assert told["access-control-allow-methods"] == "PUT, GET" and told["access-control-max-age"] == "60", told
        assert told["access-control-allow-headers"] == "x-amz-date, content-type", told
        assert told["access-control-expose-headers"] == "ETag" and "Origin" in told["vary"], told
    for change in [{"Origin": "http://example.org"}, {"Access-Control-Request-Method": "DELETE"},
                   {"Access-Control-Request-Headers": "authorization"}]:
        assert code(preflight(asks | change)) == (403, "AccessForbidden"), change
    assert code(preflight({"Origin": "http://a"})) == code(preflight({})) == (400, "BadRequest")
    assert code(preflight(asks, "/nothing/k")) == (404, "NoSuchBucket")
    S3.put_object(Bucket="plant", Key="page", Body=b"x")
    for path, status in [("/plant/page", 200), ("/plant/nothing", 404), ("/s3/plant/page", 200)]:
        found = ask("GET", path, headers={"origin": "http://www.example.com"})
        assert found[0] == status and found[1]["access-control-allow-origin"] == "http://www.example.com", found
        assert found[1]["access-control-expose-headers"] == "ETag"
    assert ask("GET", "/plant/page", headers={"origin": "null"})[1]["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in ask("PUT", "/plant/page", b"x", {"origin": "http://example.org"})[1]
    unsigned = HTTPConnection(ENDPOINT.removeprefix("http://"), timeout=60)
    unsigned.request("GET", "/plant/page", headers={"Origin": "http://www.example.com"})
    answer = unsigned.getresponse()
    assert answer.status == 403 and answer.headers["access-control-allow-origin"] == "http://www.example.com"
    S3.delete_bucket_cors(Bucket="plant")
    assert code(preflight(asks)) == (403, "AccessForbidden")
    assert "access-control-allow-origin" not in ask("GET", "/plant/page", headers={"origin": "http://www.example.com"})[1]
    holds("pages of other origins get what the rules of the bucket allow")


def posted(form, file=b"posted", filename="f", path="/plant", after=()):
    """Posts a form; gives status, headers and body."""
    line = '--B\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    body = b"".join(line.format(k, "").encode() + v.encode() + b"\r\n" for k, v in form.items())
    if file is not None:
        body += line.format("file", f'; filename="{filename}"').encode() + file + b"\r\n"
    body += b"".join(line.format(k, "").encode() + v.encode() + b"\r\n" for k, v in after) + b"--B--\r\n"
    connection = HTTPConnection(ENDPOINT.removeprefix("http://"), timeout=60)
    connection.request("POST", path, body, {"Content-Type": "multipart/form-data; boundary=B"})
    answer = connection.getresponse()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode("utf8", "replace")


def forms():
    def form(key, fields=None, conditions=(), by=S3, **arguments):
        fields = fields or {}
        conditions = [{k: v} for k, v in fields.items()] + list(conditions)
        return by.generate_presigned_post("plant", key, Fields=dict(fields), Conditions=conditions, **arguments)["fields"]
    found = posted(form("form/${filename}", {"x-amz-meta-a": "b", "Content-Type": "image/png", "Cache-Control": "no-store"}),
                   filename="C:\\dir\\a b.png")
    assert found[0] == 204 and found[1]["etag"] == f'"{hashlib.md5(b"posted").hexdigest()}"', found
    stored = S3.get_object(Bucket="plant", Key="form/a b.png")
    assert stored["Body"].read() == b"posted" and stored["Metadata"] == {"a": "b"} and stored["CacheControl"] == "no-store"
    assert stored["ContentType"] == "image/png"
    v2 = boto3.client("s3", endpoint_url=ENDPOINT, aws_access_key_id=ACCESS, aws_secret_access_key=SECRET,
                      region_name="local", config=Config(signature_version="s3"))
    assert posted(form("form/v2", by=v2))[0] == 204 and posted(form("form/s3"), path="/s3/plant")[0] == 204
    big = data(40 << 20, 95)
    assert posted(form("form/big"), big)[0] == 204 and get("form/big") == big
    holds("forms: a file is stored, of any size, with what the fields say")
    for status, expected in [("200", 200), ("201", 201), ("204", 204), ("404", 204)]:
        found = posted(form("form/status", {"success_action_status": status}))
        assert found[0] == expected, found
        if status == "201":
            assert "<Bucket>plant</Bucket><Key>form/status</Key>" in found[2] and "<Location>http://" in found[2], found
    found = posted(form("form/redirect", {"success_action_redirect": "http://a.example/x?y=1"}))
    assert found[0] == 303 and found[1]["location"].startswith("http://a.example/x?y=1&bucket=plant&key=form%2F"), found
    holds("forms: the answer is what they ask for")
    begins = [["starts-with", "$key", "form/"]]
    limits = [["content-length-range", 3, 6]]
    assert posted(form("form/x", conditions=limits))[0] == 204
    assert code(posted(form("form/large", conditions=limits), b"1234567")) == (400, "EntityTooLarge")
    assert code(posted(form("form/small", conditions=limits), b"12")) == (400, "EntityTooSmall")
    fields = form("form/x", conditions=begins)
    for changed, expected in [({"key": "other"}, (403, "AccessDenied")), ({"x-amz-meta-a": "b"}, (403, "AccessDenied")),
                              ({"unknown": "b"}, (403, "AccessDenied")), ({"bucket": "other"}, (403, "AccessDenied")),
                              ({"x-amz-signature": "0" * 64}, (403, "SignatureDoesNotMatch")),
                              ({"policy": b64(b"{}")}, (403, "SignatureDoesNotMatch")),
                              ({"x-amz-credential": "NOBODY/20260101/local/s3/aws4_request",
                                "x-amz-date": "20260101T000000Z"}, (403, "InvalidAccessKeyId"))]:
        assert code(posted(fields | changed)) == expected, (changed, posted(fields | changed))
    assert code(posted(form("form/x", ExpiresIn=-60))) == (403, "AccessDenied")
    assert code(posted({"key": "form/x"})) == (403, "AccessDenied")
    assert code(posted(fields, None)) == (400, "InvalidArgument")
    assert code(posted(fields, path="/plant/key")) == (405, "MethodNotAllowed")
    assert posted(fields | {"x-ignore-a": "b", "submit": "go"}, after=[("late", "ignored")])[0] == 204
    assert code(posted(form("form/long", {"x-amz-meta-a": "b" * 21_000})))[1] == "MaxPostPreDataLengthExceededError"
    for gone in ("form/large", "form/small"):
        refused("404", 404, S3.head_object, Bucket="plant", Key=gone)
    holds("forms: they hold what their policy says, or nothing is stored")
    xml = "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"
    assert posted(form("form/tags", {"tagging": xml, "acl": "private", "x-amz-storage-class": "STANDARD"}))[0] == 204
    assert tags_of(Bucket="plant", Key="form/tags") == {"a": "b"}
    crc = b64(CHECKSUMS["CRC32"](b"posted"))
    assert posted(form("form/sum", {"x-amz-checksum-crc32": crc}))[0] == 204
    assert S3.head_object(Bucket="plant", Key="form/sum", ChecksumMode="ENABLED")["ChecksumCRC32"] == crc
    for fields, expected in [({"x-amz-checksum-crc32": b64(bytes(4))}, "BadDigest"),
                             ({"Content-MD5": b64(bytes(16))}, "BadDigest"),
                             ({"acl": "public-read"}, "AccessControlListNotSupported"),
                             ({"tagging": "a=b"}, "MalformedXML"),
                             ({"x-amz-storage-class": "GLACIER"}, "NotImplemented"),
                             ({"x-amz-website-redirect-location": "/"}, "NotImplemented"),
                             ({"x-amz-server-side-encryption": "aws:kms"}, "NotImplemented"),
                             ({"x-amz-object-lock-mode": "GOVERNANCE"}, "NotImplemented"),
                             ({"x-amz-not-in-the-model": "1"}, "NotImplemented")]:
        assert code(posted(form("form/no", fields)))[1] == expected, (fields, posted(form("form/no", fields)))
    refused("404", 404, S3.head_object, Bucket="plant", Key="form/no")
    version = posted(S3.generate_presigned_post("kept", "form")["fields"], path="/kept")[1]["x-amz-version-id"]
    assert get("form", "kept", VersionId=version) == b"posted"
    holds("forms: each field is acted on or refused")


def members():
    """Members that no other suite sends, each with what became of it."""
    at = {"Bucket": "plant", "Key": "members"}
    body = b"0123456789"
    wrong = {"ChecksumCRC32": b64(bytes(4)), "ChecksumCRC32C": b64(bytes(4)), "ChecksumCRC64NVME": b64(bytes(8)),
             "ChecksumSHA1": b64(bytes(20)), "ChecksumSHA256": b64(bytes(32))}
    said = {"CacheControl": "no-store", "ContentDisposition": "attachment", "ContentEncoding": "gzip",
            "ContentLanguage": "de", "ContentType": "x/y", "Expires": "Wed, 21 Oct 2026 07:28:00 GMT",
            "Metadata": {"a": "b"}, "ServerSideEncryption": "AES256"}

    def same(**arguments):
        found = S3.head_object(**at, **arguments)
        assert {k: found["ExpiresString" if k == "Expires" else k] for k in said} == said, found
    kept = said | {"StorageClass": "STANDARD", "ACL": "private", "Tagging": "t=1"}
    S3.put_object(**at, Body=body, **kept, IfNoneMatch="*", ContentLength=len(body), ChecksumAlgorithm="SHA256")
    same()
    first = S3.head_object(**at)
    refused("PreconditionFailed", 412, S3.put_object, **at, Body=b"x", IfMatch='"nope"')
    refused("BadDigest", 400, S3.put_object, **at, Body=b"x", ContentMD5=b64(bytes(16)))
    for name, value in wrong.items():
        refused("BadDigest", 400, S3.put_object, **at, Body=b"x", **{name: value})
    for name, value in [("ACL", "public-read"), ("StorageClass", "GLACIER"), ("ServerSideEncryption", "aws:kms")]:
        no = ("AccessControlListNotSupported", 400) if name == "ACL" else ("NotImplemented", 501)
        refused(*no, S3.put_object, **at, Body=b"x", **{name: value})
        refused(*no, S3.copy_object, **at, CopySource="plant/members", MetadataDirective="REPLACE", **{name: value})
        refused(*no, S3.create_multipart_upload, **at, **{name: value})
    S3.copy_object(**at, CopySource="plant/members", MetadataDirective="REPLACE", TaggingDirective="REPLACE",
                   ChecksumAlgorithm="SHA1", IfMatch=first["ETag"], **kept)
    same(ChecksumMode="ENABLED")
    assert S3.head_object(**at, ChecksumMode="ENABLED")["ChecksumSHA1"] == b64(hashlib.sha1(body).digest())
    copy = {"Bucket": "plant", "Key": "members/copy", "CopySource": "plant/members"}
    past, future = "Sun, 06 Nov 1994 08:49:37 GMT", "Wed, 06 Nov 2069 08:49:37 GMT"
    part = {**begin("members/part", {})[0], "CopySource": "plant/members"}
    for call, more in [(S3.copy_object, copy), (S3.upload_part_copy, part | {"PartNumber": 1})]:
        for condition in [{"CopySourceIfMatch": '"nope"'}, {"CopySourceIfNoneMatch": first["ETag"]},
                          {"CopySourceIfModifiedSince": future}, {"CopySourceIfUnmodifiedSince": past}]:
            refused("PreconditionFailed", 412, call, **more, **condition)
        refused("AccessDenied", 403, call, **more, ExpectedSourceBucketOwner="other")
        call(**more, CopySourceIfMatch=first["ETag"], CopySourceIfModifiedSince=past, ExpectedSourceBucketOwner="local")
    refused("PreconditionFailed", 412, S3.copy_object, **copy, IfNoneMatch="*")
    refused("PreconditionFailed", 412, S3.copy_object, **copy, IfMatch='"nope"')
    begun = S3.create_multipart_upload(**at, **kept, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
    here = at | {"UploadId": begun["UploadId"]}
    for name, value in wrong.items():
        refused(*(("BadDigest", 400) if name == "ChecksumCRC32" else ("InvalidRequest", 400)), S3.upload_part, **here,
                PartNumber=1, Body=body, **{name: value})
    refused("BadDigest", 400, S3.upload_part, **here, PartNumber=1, Body=body, ContentMD5=b64(bytes(16)))
    stored = S3.upload_part(**here, PartNumber=1, Body=body, ContentLength=len(body), ChecksumAlgorithm="CRC32")
    S3.upload_part(**here, PartNumber=2, Body=body)
    assert [p["PartNumber"] for p in S3.list_parts(**here, MaxParts=1)["Parts"]] == [1]
    assert [p["PartNumber"] for p in S3.list_parts(**here, PartNumberMarker=1)["Parts"]] == [2]
    only = {"Parts": [{"PartNumber": 1, "ETag": stored["ETag"]}]}
    complete = S3.complete_multipart_upload
    for name, value in wrong.items():
        refused(*(("BadDigest", 400) if name == "ChecksumCRC32" else ("InvalidRequest", 400)), complete, **here,
                MultipartUpload=only, **{name: value})
    refused("InvalidRequest", 400, complete, **here, MultipartUpload=only, ChecksumType="COMPOSITE")
    refused("InvalidRequest", 400, complete, **here, MultipartUpload=only, MpuObjectSize=11)
    refused("PreconditionFailed", 412, complete, **here, MultipartUpload=only, IfMatch='"nope"')
    refused("PreconditionFailed", 412, complete, **here, MultipartUpload=only, IfNoneMatch="*")
    complete(**here, MultipartUpload=only, MpuObjectSize=10, ChecksumType="FULL_OBJECT")
    same()
    etag = S3.head_object(**at)["ETag"]
    over = {"ResponseCacheControl": "a", "ResponseContentDisposition": "b", "ResponseContentEncoding": "c",
            "ResponseContentLanguage": "d", "ResponseContentType": "e/f", "ResponseExpires": past}
    for call in (S3.get_object, S3.head_object):
        found = call(**at, **over)
        assert {k: found["ExpiresString" if k == "ResponseExpires" else k.removeprefix("Response")] for k in over} == over
        assert "ChecksumCRC32" in call(**at, ChecksumMode="ENABLED")
        assert call(**at, Range="bytes=2-4")["ContentLength"] == 3 and call(**at, PartNumber=1)["PartsCount"] == 1
        bad = "404" if call == S3.head_object else "InvalidArgument"
        not_met, same_ = ("412", "304") if call == S3.head_object else ("PreconditionFailed", "304")
        refused(not_met, 412, call, **at, IfMatch='"nope"')
        refused(not_met, 412, call, **at, IfUnmodifiedSince=past)
        refused(same_, 304, call, **at, IfNoneMatch=etag)
        refused(same_, 304, call, **at, IfModifiedSince=future)
        call(**at, VersionId="null")
        refused("400" if call == S3.head_object else bad, 400, call, **at, VersionId="abc")
    done = S3.delete_objects(Bucket="plant", Delete={"Objects": [{"Key": "members/copy"}]}, ChecksumAlgorithm="SHA1")
    assert done["Deleted"][0]["Key"] == "members/copy"
    for n in range(3):
        S3.create_multipart_upload(Bucket="plant", Key=f"members/up+{n}")
    found = S3.list_multipart_uploads(Bucket="plant", Prefix="members/up", MaxUploads=2, EncodingType="url")
    assert found["IsTruncated"] and len(found["Uploads"]) == 2, found
    found = S3.list_multipart_uploads(Bucket="plant", Prefix="members/up", KeyMarker="members/up+0",
                                      UploadIdMarker="f" * 32)
    assert [u["Key"] for u in found["Uploads"]] == ["members/up+1", "members/up+2"], found
    for upload_ in S3.list_multipart_uploads(Bucket="plant", Prefix="members/")["Uploads"]:
        S3.abort_multipart_upload(Bucket="plant", Key=upload_["Key"], UploadId=upload_["UploadId"])
    for n in range(3):
        S3.put_object(Bucket="plant", Key=f"members/l+{n}/x", Body=b"")
    page = {"Bucket": "plant", "Prefix": "members/l", "EncodingType": "url", "Delimiter": "/x", "MaxKeys": 2}
    found = S3.list_objects(**page)
    assert [p["Prefix"] for p in found["CommonPrefixes"]] == ["members/l%2B0/x", "members/l%2B1/x"] and found["IsTruncated"]
    assert len(S3.list_objects(**page, Marker="members/l+1/x")["CommonPrefixes"]) == 1
    found = S3.list_objects_v2(**page)
    assert len(S3.list_objects_v2(**page, ContinuationToken=found["NextContinuationToken"])["CommonPrefixes"]) == 1
    assert len(S3.list_objects_v2(**page, StartAfter="members/l+1/x")["CommonPrefixes"]) == 1
    assert "Owner" in S3.list_objects_v2(Bucket="plant", Prefix="members/l", FetchOwner=True)["Contents"][0]
    first = S3.list_buckets(MaxBuckets=1, Prefix="p")
    second = S3.list_buckets(MaxBuckets=1, Prefix="p", ContinuationToken=first["ContinuationToken"])
    assert [b["Name"] for b in first["Buckets"] + second["Buckets"]] == ["plain", "plant"]
    where = {"CreateBucketConfiguration": {"LocationConstraint": "hybrid"}}
    for name, good, bad in [("ACL", "private", "public-read"), ("ObjectOwnership", "BucketOwnerEnforced", "ObjectWriter"),
                            ("ObjectLockEnabledForBucket", False, True)]:
        no = ("AccessControlListNotSupported", 400) if name == "ACL" else ("NotImplemented", 501)
        refused(*no, S3.create_bucket, Bucket="members-bucket", **where, **{name: bad})
        S3.create_bucket(Bucket="members-bucket", **where, **{name: good})
        S3.delete_bucket(Bucket="members-bucket")
    for call, arguments in [(S3.put_bucket_versioning, {"VersioningConfiguration": {"Status": "Enabled"}}),
                            (S3.put_bucket_tagging, {"Tagging": tag_set({"a": "b"})}),
                            (S3.put_bucket_acl, {"AccessControlPolicy": S3_FULL}),
                            (S3.put_object_acl, {"AccessControlPolicy": S3_FULL, "Key": "members"})]:
        refused("BadDigest", 400, call, Bucket="plant", ContentMD5=b64(bytes(16)), **arguments)
        if call != S3.put_bucket_versioning:
            call(Bucket="plant", ChecksumAlgorithm="CRC32", **arguments)
    S3.delete_bucket_tagging(Bucket="plant")
    holds("members: each one is acted on")


S3_FULL = {"Owner": {"ID": "local"}, "Grants": [
    {"Grantee": {"Type": "CanonicalUser", "ID": "local"}, "Permission": "FULL_CONTROL"}]}


def default_policy():
    policies()
    edge = {e["name"]: e["id"] for e in json.loads(http("GET", "/edge_devices/")[1])}
    status, _ = policy("POST", body={"name": "default", "edge_devices": [edge["e1"], edge["e2"]], "backends": [],
                                     "redundancy": {"scheme": "RS", "redundant_packets": 1}})
    assert status == 201
    bucket("ours")
    S3.put_object(Bucket="ours", Key="k", Body=b"ours")


def owners():
    """Another owner, of whom nothing is known but a key."""
    access, secret = sys.argv[5].split()
    other = client(secret, access)
    assert other.list_buckets()["Buckets"] == []
    other.create_bucket(Bucket="theirs")
    assert other.get_bucket_location(Bucket="theirs")["LocationConstraint"] == "default"
    bucket("named", by=other)
    body = data(9 << 20, 97)
    other.upload_fileobj(io.BytesIO(body), "theirs", "big")
    other.put_object(Bucket="theirs", Key="k", Body=b"theirs")
    assert other.get_object(Bucket="theirs", Key="big")["Body"].read() == body
    assert [b["Name"] for b in other.list_buckets()["Buckets"]] == ["named", "theirs"]
    assert other.list_objects_v2(Bucket="theirs", FetchOwner=True)["Contents"][0]["Owner"]["ID"] == "newcomer"
    holds("a new owner makes a bucket, and fills it, without further set-up")
    for call, arguments in [("get_object", {"Key": "k"}), ("head_bucket", {}), ("list_objects_v2", {}),
                            ("put_object", {"Key": "k", "Body": b"x"}), ("delete_object", {"Key": "k"}),
                            ("delete_bucket", {}), ("get_bucket_acl", {}), ("get_bucket_tagging", {}),
                            ("put_bucket_versioning", {"VersioningConfiguration": {"Status": "Enabled"}})]:
        code_ = "403" if call == "head_bucket" else "AccessDenied"
        refused(code_, 403, getattr(S3, call), Bucket="theirs", **arguments)
        refused(code_, 403, getattr(other, call), Bucket="ours", **arguments)
    refused("AccessDenied", 403, other.copy_object, Bucket="theirs", Key="c", CopySource="ours/k")
    refused("BucketAlreadyExists", 409, other.create_bucket, Bucket="ours")
    refused("InvalidLocationConstraint", 400, bucket, name="nowhere-at-all", policy="nowhere", by=other)
    assert get("k", "ours") == b"ours" and other.get_object(Bucket="theirs", Key="k")["Body"].read() == b"theirs"
    assert policy("DELETE", "/default")[0] == 409
    holds("and neither owner reads or changes what is of the other")


# Members of S3's own model that are acted on, by operation, beside bucket, key and body. All others are refused.
OBJECT = ["ACL", "CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType", "ExpectedBucketOwner",
          "Expires", "Metadata", "ServerSideEncryption", "StorageClass", "Tagging"]
SUMS = ["ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256"]
READ = ["ChecksumMode", "ExpectedBucketOwner", "IfMatch", "IfModifiedSince", "IfNoneMatch", "IfUnmodifiedSince", "PartNumber",
        "Range", "ResponseCacheControl", "ResponseContentDisposition", "ResponseContentEncoding", "ResponseContentLanguage",
        "ResponseContentType", "ResponseExpires", "VersionId"]
SOURCE = ["CopySource", "CopySourceIfMatch", "CopySourceIfModifiedSince", "CopySourceIfNoneMatch",
          "CopySourceIfUnmodifiedSince", "ExpectedBucketOwner", "ExpectedSourceBucketOwner"]
DIGEST = ["ChecksumAlgorithm", "ContentMD5", "ExpectedBucketOwner"]
GRANTS = ["GrantFullControl", "GrantRead", "GrantReadACP", "GrantWrite", "GrantWriteACP"]
ACTED = {
    "AbortMultipartUpload": ["ExpectedBucketOwner", "UploadId"],
    "CompleteMultipartUpload": SUMS + ["ChecksumType", "ExpectedBucketOwner", "IfMatch", "IfNoneMatch", "MpuObjectSize",
                                       "UploadId"],
    "CopyObject": OBJECT + SOURCE + ["ChecksumAlgorithm", "IfMatch", "IfNoneMatch", "MetadataDirective", "TaggingDirective"],
    "CreateBucket": ["ACL", "ObjectLockEnabledForBucket", "ObjectOwnership"],
    "CreateMultipartUpload": OBJECT + ["ChecksumAlgorithm", "ChecksumType"],
    "DeleteObject": ["ExpectedBucketOwner", "IfMatch", "VersionId"],
    "DeleteObjectTagging": ["ExpectedBucketOwner", "VersionId"],
    "DeleteObjects": ["ChecksumAlgorithm", "ExpectedBucketOwner"],
    "GetObject": READ,
    "GetObjectAcl": ["ExpectedBucketOwner", "VersionId"],
    "GetObjectAttributes": ["ExpectedBucketOwner", "MaxParts", "ObjectAttributes", "PartNumberMarker", "VersionId"],
    "GetObjectTagging": ["ExpectedBucketOwner", "VersionId"],
    "HeadObject": READ,
    "ListBuckets": ["ContinuationToken", "MaxBuckets", "Prefix"],
    "ListMultipartUploads": ["EncodingType", "ExpectedBucketOwner", "KeyMarker", "MaxUploads", "Prefix", "UploadIdMarker"],
    "ListObjectVersions": ["Delimiter", "EncodingType", "ExpectedBucketOwner", "KeyMarker", "MaxKeys", "Prefix",
                           "VersionIdMarker"],
    "ListObjects": ["Delimiter", "EncodingType", "ExpectedBucketOwner", "Marker", "MaxKeys", "Prefix"],
    "ListObjectsV2": ["ContinuationToken", "Delimiter", "EncodingType", "ExpectedBucketOwner", "FetchOwner", "MaxKeys",
                      "Prefix", "StartAfter"],
    "ListParts": ["ExpectedBucketOwner", "MaxParts", "PartNumberMarker", "UploadId"],
    "PutBucketAcl": DIGEST + GRANTS + ["ACL"],
    "PutBucketCors": DIGEST,
    "PutBucketTagging": DIGEST,
    "PutBucketVersioning": DIGEST,
    "PutObject": OBJECT + SUMS + ["ChecksumAlgorithm", "ContentLength", "ContentMD5", "IfMatch", "IfNoneMatch"],
    "PutObjectAcl": DIGEST + GRANTS + ["ACL", "VersionId"],
    "PutObjectTagging": DIGEST + ["VersionId"],
    "UploadPart": SUMS + ["ChecksumAlgorithm", "ContentLength", "ContentMD5", "ExpectedBucketOwner", "PartNumber", "UploadId"],
    "UploadPartCopy": SOURCE + ["CopySourceRange", "PartNumber", "UploadId"],
} | {name: ["ExpectedBucketOwner"] for name in [
    "DeleteBucket", "DeleteBucketCors", "DeleteBucketLifecycle", "DeleteBucketPolicy", "DeleteBucketReplication",
    "DeleteBucketTagging", "DeleteBucketWebsite", "GetBucketAccelerateConfiguration", "GetBucketAcl", "GetBucketCors",
    "GetBucketEncryption", "GetBucketLifecycle", "GetBucketLifecycleConfiguration", "GetBucketLocation", "GetBucketLogging",
    "GetBucketNotification", "GetBucketNotificationConfiguration", "GetBucketOwnershipControls", "GetBucketPolicy", "GetBucketPolicyStatus",
    "GetBucketReplication", "GetBucketRequestPayment", "GetBucketTagging", "GetBucketVersioning", "GetBucketWebsite",
    "GetObjectLockConfiguration", "GetPublicAccessBlock", "HeadBucket"]}
# Values that are refused although the member is acted on, for what they mean.
VALUES = {"ObjectLockEnabledForBucket": "false", "CopySource": "plant/from", "ObjectOwnership": "BucketOwnerEnforced",
          "TaggingDirective": "COPY", "IfNoneMatch": "*"}
PAGE = Path(__file__).parents[3] / "docs/reference/s3.md"


def model():
    """Each operation of S3's model with each of its members: acted on, or refused with NotImplemented. What is acted on was
    sent, and its effect checked, by the suites before."""
    service = botocore.session.get_session().get_service_model("s3")
    acted = refused_ = unknown = 0
    without, operations, members_refused = [], [], {}
    for name in service.operation_names:
        operation = service.operation_model(name)
        if name in ("WriteGetObjectResponse", "CreateSession", "ListDirectoryBuckets"):
            continue  # Of other services: Lambda and directory buckets.
        members = operation.input_shape.members if operation.input_shape else {}
        required = set(operation.input_shape.required_members if operation.input_shape else [])

        def value(member):
            shape = members[member]
            if member in VALUES:
                return VALUES[member]
            if getattr(shape, "enum", None):
                return shape.enum[0]
            return {"integer": "1", "long": "1", "boolean": "true", "timestamp": "Sun, 06 Nov 1994 08:49:37 GMT"}.get(
                shape.type_name, "a")

        def send(extra, header=None, parameter=None):
            path = operation.http["requestUri"].replace("{Bucket}", "plant").replace("{Key+}", "model/key")
            path, _, query = path.partition("?")
            pairs, headers = [query] if query else [], {}
            for member in (required | {extra}) - {None}:
                place, at = members[member].serialization.get("location"), members[member].serialization.get("name")
                if place == "querystring":
                    pairs.append(f"{at}={urllib.parse.quote(value(member), safe='')}")
                elif place == "header":
                    headers[at] = value(member)
                elif place == "headers":
                    headers[at + "a"] = "b"
            if header:
                headers[header] = "1"
            if parameter:
                pairs.append(f"{parameter}=1")
            answer = ask(operation.http["method"], path + ("?" + "&".join(pairs) if pairs else ""), b"", headers)
            # A HEAD has no code; no other 501 is sent.
            return answer[0]
        if name not in ACTED:
            operations.append(name)
            assert send(None) == 501, name
        for member, shape in members.items():
            if shape.serialization.get("location") not in ("querystring", "header", "headers") or member == "ContentLength":
                continue
            status, is_acted = send(member), member in ACTED.get(name, [])
            assert (status == 501) != is_acted, (name, member, status)
            acted, refused_ = acted + is_acted, refused_ + (not is_acted)
            if member == "ExpectedBucketOwner" and is_acted:
                assert status == 403, (name, status)
            elif is_acted and member not in SENT[name]:
                without.append(f"{name}.{member}")
            elif name in ACTED and not is_acted:
                members_refused.setdefault(name, []).append(member)
        assert send(None, header="x-amz-not-in-the-model") == send(None, parameter="not-in-the-model") == 501, name
        unknown += 2
    assert acted > 200 and refused_ > 200, (acted, refused_)
    assert not without, f"acted on without a check: {without}"
    holds(f"of S3's model, {acted} members are acted on, {refused_} refused, and {unknown} unknown ones too")
    table = [f"| `{name}` | {', '.join(sorted(set(ACTED[name]) - {'ContentLength'})) or '-'} | "
             f"{', '.join(sorted(members_refused.get(name, []))) or '-'} |" for name in sorted(ACTED)]
    text = "\n".join(table) + "\n\nRefused as a whole: " + ", ".join(f"`{name}`" for name in sorted(operations)) + ".\n"
    head, _, tail = PAGE.read_text().partition("<!-- botocore ")
    version, _, old = tail.partition(" -->\n\n")
    header = "| operation | acted on | refused |\n| --- | --- | --- |\n"
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(f"{head}<!-- botocore {botocore.__version__} -->\n\n{header}{text}")
    elif version == botocore.__version__:
        assert old == header + text, "docs/reference/s3.md says otherwise; write it again with UPDATE_GOLDEN=1"
    else:
        # Of another version of the model: what is acted on does not depend on it.
        acted_on = [line.split("|")[1:3] for line in old.split("\n\n")[0].splitlines()[2:]]
        assert acted_on == [line.split("|")[1:3] for line in table], "docs/reference/s3.md says otherwise"
    holds("and the documents say the same")


def owners_alone():
    """Where the site gives its policies to nobody, a new owner defines one first."""
    access, secret = sys.argv[5].split()
    other = client(secret, access)
    refused("InvalidLocationConstraint", 400, other.create_bucket, Bucket="without-policy")
    assert other.get_object(Bucket="theirs", Key="k")["Body"].read() == b"theirs"
    holds("the policies of the site are given only if it says so")


def large_ones():
    policies()
    S3.create_bucket(Bucket="plant", CreateBucketConfiguration={"LocationConstraint": "hybrid"})
    for n in range(3):
        S3.put_object(Bucket="plant", Key=f"large/{n}", Body=data(24 << 20, 60 + n))


def many():
    """Many clients at once, puts and gets, a quarter each of them quick, slow, silent and almost silent."""
    size, wait = 24 << 20, float(sys.argv[5])
    block = data(1 << 20, 60)
    whole, late = [], []

    def put(index, kind):
        url = S3.generate_presigned_url("put_object", Params={"Bucket": "plant", "Key": f"many/{index}"})
        connection = HTTPConnection(ENDPOINT.removeprefix("http://"), timeout=60)
        connection.putrequest("PUT", url.removeprefix(ENDPOINT))
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        stop, begun = size if kind in ("quick", "slow") else 3 << 20, time.monotonic()
        for at in range(0, stop, 1 << 20):
            connection.send(block)
            if kind == "slow":
                time.sleep(wait / 8)
        while kind == "dribbling" and time.monotonic() - begun < 20 * wait:
            try:
                connection.send(b"x")
            except OSError:
                break
            time.sleep(wait / 20)
        answer = connection.getresponse()
        text = answer.read().decode()
        (whole if answer.status == 200 else late).append((index, kind, "put", text))

    def get(index, kind):
        url = S3.generate_presigned_url("get_object", Params={"Bucket": "plant", "Key": f"large/{index % 3}"})
        connection = HTTPConnection(ENDPOINT.removeprefix("http://"), timeout=60)
        connection.request("GET", url.removeprefix(ENDPOINT))
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        if kind in ("silent", "dribbling"):
            time.sleep(3 * wait)
        body = b""
        try:
            while piece := answer.read(1 << 20):
                body += piece
                if kind == "slow":
                    time.sleep(wait / 8)
        except (HTTPException, OSError):
            pass
        right = body == data(size, 60 + index % 3)
        assert right or (kind in ("silent", "dribbling") and len(body) < size), (index, kind, len(body))
        (whole if right else late).append((index, kind, "get", "RequestTimeout"))

    kinds = ["quick", "slow", "silent", "dribbling"]
    threads = [threading.Thread(target=(put, get)[n % 2], args=(n, kinds[n // 2 % 4])) for n in range(48)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kind for _, kind, _, _ in whole) == ["quick"] * 12 + ["slow"] * 12, whole
    assert sorted(kind for _, kind, _, _ in late) == ["dribbling"] * 12 + ["silent"] * 12, late
    assert all("RequestTimeout" in text for _, _, _, text in late), late
    for n in (0, 2):
        assert S3.get_object(Bucket="plant", Key=f"many/{n}")["Body"].read() == block * 24
    holds("those who keep up are served whole, and those who do not are cut off and told")


def policies_only():
    policies()


def clients_know():
    policies()
    S3.create_bucket(Bucket="plant", CreateBucketConfiguration={"LocationConstraint": "hybrid"})
    S3.put_object(Bucket="plant", Key="kept", Body=b"kept")
    wrong = []
    for suite in (digests, nothing_dropped, reads, copies, lists, signing, versioned, tagged, owned, attributes, origins, forms,
                  members, model):
        try:
            suite()
        except Exception:
            wrong.append(traceback.format_exc())
    assert not wrong, "\n".join(wrong)


{f.__name__: f for f in (acceptance, large, second, read, cached, lost, writer, check, clients_know,
                             policies_only, large_ones, many, versions_whole, default_policy, owners,
                             owners_alone)}[SUITE]()
