"""Two S3 clients of other makers, boto3 and minio, against a gateway: the acceptance tests of secure storage.

Usage: clients.py SUITE ENDPOINT ACCESS SECRET [argument]. Prints a line per thing that holds; fails at the first that
does not.
"""

import hashlib
import io
import json
import random
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPConnection

import boto3
import boto3.s3.transfer
import botocore.auth
import botocore.awsrequest
import botocore.credentials
import botocore.exceptions
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


{f.__name__: f for f in (acceptance, large, second, read, cached, lost, writer, check)}[SUITE]()
