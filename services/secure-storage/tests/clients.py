"""Two S3 clients of other makers, boto3 and minio, against a gateway: the acceptance tests of secure storage.

Usage: clients.py SUITE ENDPOINT ACCESS SECRET [argument]. Prints a line per thing that holds; fails at the first that
does not.
"""

import base64
import hashlib
import io
import json
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

import boto3
import boto3.s3.transfer
import botocore.auth
import botocore.awsrequest
import botocore.credentials
import botocore.exceptions
import botocore.session
from botocore.client import Config
from minio import Minio

SUITE, ENDPOINT, ACCESS, SECRET = sys.argv[1:5]
CREDENTIALS = botocore.credentials.Credentials(ACCESS, SECRET)


def client(secret=SECRET):
    config = Config(signature_version="s3v4", s3={"addressing_style": "path"}, retries={"max_attempts": 0},
                    read_timeout=60)
    return boto3.client("s3", endpoint_url=ENDPOINT, aws_access_key_id=ACCESS, aws_secret_access_key=secret,
                        region_name="local", config=config)


S3 = client()


def holds(what, true=True):
    assert true, what
    print("ok", what, flush=True)


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
    for headers in [{"x-amz-server-side-encryption-customer-algorithm": "AES256"}, {"x-amz-tagging": "a=b"},
                    {"x-amz-server-side-encryption": "aws:kms"}, {"x-amz-object-lock-mode": "GOVERNANCE"},
                    {"x-amz-object-lock-legal-hold": "ON"}, {"x-amz-website-redirect-location": "/"},
                    {"x-amz-storage-class": "GLACIER"}, {"x-amz-grant-read": "id=1"}, {"x-amz-unknown": "1"}]:
        for method, path in [("PUT", "/plant/kept/as/is"), ("POST", "/plant/kept/as/is?uploads")]:
            assert code(ask(method, path, b"other", headers))[1] == "NotImplemented", headers
    assert code(ask("PUT", "/plant/kept/as/is", b"x", {"x-amz-acl": "public-read"}))[1] == "AccessControlListNotSupported"
    copy = {"x-amz-copy-source": "plant/kept/as/is"}
    for headers, expected in [({"x-amz-metadata-directive": "BOGUS"}, "InvalidArgument"), ({}, "InvalidRequest"),
                              ({"x-amz-tagging": "a=b"}, "NotImplemented")]:
        assert code(ask("PUT", "/plant/kept/as/is", b"", copy | headers))[1] == expected, headers
    for path in ["/plant/kept/as/is?acl", "/plant/kept/as/is?tagging", "/plant/kept/as/is?torrent", "/plant?policy", "/plant?cors",
                 "/plant?unknown=1", "/plant?list-type=2&unknown", "/plant/kept/as/is?retention"]:
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
    assert "Status" not in S3.get_bucket_versioning(Bucket="plant")
    holds("/s3/ may stand before the bucket")
    form = S3.generate_presigned_post("plant", "form/${filename}", Fields={"x-amz-meta-a": "b"},
                                      Conditions=[{"x-amz-meta-a": "b"}])

    def post(fields):
        lines = "".join(f'--B\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items())
        lines += '--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nposted\r\n--B--\r\n'
        return http("POST", "/plant", lines.encode(), {"Content-Type": "multipart/form-data; boundary=B"})
    status, text = post(form["fields"] | {"key": "form/f"} if "${" not in form["fields"]["key"] else form["fields"])
    holds(f"a form is posted ({status})", status in (200, 201, 204))


# Members of S3's own model that are acted on, by operation, beside bucket, key and body. All others are refused.
OBJECT = ["ACL", "CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType", "ExpectedBucketOwner",
          "Expires", "Metadata", "ServerSideEncryption", "StorageClass"]
SUMS = ["ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256"]
READ = ["ChecksumMode", "ExpectedBucketOwner", "IfMatch", "IfModifiedSince", "IfNoneMatch", "IfUnmodifiedSince", "PartNumber",
        "Range", "ResponseCacheControl", "ResponseContentDisposition", "ResponseContentEncoding", "ResponseContentLanguage",
        "ResponseContentType", "ResponseExpires", "VersionId"]
SOURCE = ["CopySource", "CopySourceIfMatch", "CopySourceIfModifiedSince", "CopySourceIfNoneMatch",
          "CopySourceIfUnmodifiedSince", "ExpectedBucketOwner", "ExpectedSourceBucketOwner"]
ACTED = {
    "AbortMultipartUpload": ["ExpectedBucketOwner", "UploadId"],
    "CompleteMultipartUpload": SUMS + ["ChecksumType", "ExpectedBucketOwner", "IfMatch", "IfNoneMatch", "MpuObjectSize",
                                       "UploadId"],
    "CopyObject": OBJECT + SOURCE + ["ChecksumAlgorithm", "IfMatch", "IfNoneMatch", "MetadataDirective", "TaggingDirective"],
    "CreateBucket": ["ACL", "ObjectLockEnabledForBucket", "ObjectOwnership"],
    "CreateMultipartUpload": OBJECT + ["ChecksumAlgorithm", "ChecksumType"],
    "DeleteBucket": ["ExpectedBucketOwner"],
    "DeleteObject": ["ExpectedBucketOwner", "IfMatch", "VersionId"],
    "DeleteObjects": ["ChecksumAlgorithm", "ExpectedBucketOwner"],
    "GetBucketLocation": ["ExpectedBucketOwner"],
    "GetBucketVersioning": ["ExpectedBucketOwner"],
    "GetObject": READ,
    "HeadBucket": ["ExpectedBucketOwner"],
    "HeadObject": READ,
    "ListBuckets": ["ContinuationToken", "MaxBuckets", "Prefix"],
    "ListMultipartUploads": ["EncodingType", "ExpectedBucketOwner", "KeyMarker", "MaxUploads", "Prefix", "UploadIdMarker"],
    "ListObjectVersions": ["Delimiter", "EncodingType", "ExpectedBucketOwner", "KeyMarker", "MaxKeys", "Prefix",
                           "VersionIdMarker"],
    "ListObjects": ["Delimiter", "EncodingType", "ExpectedBucketOwner", "Marker", "MaxKeys", "Prefix"],
    "ListObjectsV2": ["ContinuationToken", "Delimiter", "EncodingType", "ExpectedBucketOwner", "FetchOwner", "MaxKeys",
                      "Prefix", "StartAfter"],
    "ListParts": ["ExpectedBucketOwner", "MaxParts", "PartNumberMarker", "UploadId"],
    "PutObject": OBJECT + SUMS + ["ChecksumAlgorithm", "ContentLength", "ContentMD5", "IfMatch", "IfNoneMatch"],
    "UploadPart": SUMS + ["ChecksumAlgorithm", "ContentLength", "ContentMD5", "ExpectedBucketOwner", "PartNumber", "UploadId"],
    "UploadPartCopy": SOURCE + ["CopySourceRange", "PartNumber", "UploadId"],
}
# Values that are refused although the member is acted on, for what they mean.
VALUES = {"ObjectLockEnabledForBucket": "false", "CopySource": "plant/from", "ObjectOwnership": "BucketOwnerEnforced",
          "TaggingDirective": "COPY", "IfNoneMatch": "*"}


def model():
    """Each operation of S3's model with each of its members: acted on, or refused with NotImplemented."""
    service = botocore.session.get_session().get_service_model("s3")
    acted = refused_ = unknown = 0
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
            return answer[0] == 501
        if name not in ACTED:
            assert send(None), name
        for member, shape in members.items():
            if shape.serialization.get("location") not in ("querystring", "header", "headers") or member == "ContentLength":
                continue
            assert send(member) == (member not in ACTED.get(name, [])), (name, member)
            acted, refused_ = acted + (member in ACTED.get(name, [])), refused_ + (member not in ACTED.get(name, []))
        assert send(None, header="x-amz-not-in-the-model") and send(None, parameter="not-in-the-model"), name
        unknown += 2
    assert acted > 100 and refused_ > 200, (acted, refused_)
    holds(f"of S3's model, {acted} members are acted on, {refused_} refused, and {unknown} unknown ones too")


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
    for suite in (digests, nothing_dropped, reads, copies, lists, signing, model):
        try:
            suite()
        except Exception:
            wrong.append(traceback.format_exc())
    assert not wrong, "\n".join(wrong)


{f.__name__: f for f in (acceptance, large, second, read, cached, lost, writer, check, clients_know,
                             policies_only, large_ones, many)}[SUITE]()
