import time

import pytest

from pipeline.places.credentials import carried, redacted, shown

SECRET = "s3cr3t"

CARRYING = [
    f"https://me:{SECRET}@host.org/v.zarr",
    f"https://{SECRET}@host.org/v.zarr",
    f"s3://AKIA:{SECRET}@bucket/v.zarr",
    f"HTTPS://me:{SECRET}@host.org",
    f"file://me:{SECRET}@host/v",
    f"zip://inner::https://me:{SECRET}@host.org/v.zip",
    f"https://me:{SECRET}::x@host.org/v",
    f"https://me:{SECRET}/x@host.org/v",
    f"https://me:#{SECRET}@host.org/v",
    f"https://me:?{SECRET}@host.org/v",
    f"https://me:{SECRET} x@host.org/v",
    f"abfs://me:{SECRET}@account.dfs.core.windows.net/v",
    f"https://host.org/v.zarr?X-Amz-Signature={SECRET}",
    f"https://host.org/v.zarr?x=1&x-amz-security-token={SECRET}&y=2",
    f"https://host.org/v.zarr?X-Goog-Signature={SECRET}",
    f"https://account.blob.core.windows.net/v?sv=2024&sig={SECRET}",
    f"https://host.org/v?access_token={SECRET}",
    f"https://host.org/v?api%5Fkey={SECRET}",
    f"https://host.org/v#token={SECRET}",
    f"https://host.org/v?a=1;Password={SECRET}",
    f"https://host.org/v?AWSAccessKeyId=AKIA&Expires=1&Signature={SECRET}",
    f"https://host.org/v.h5?key={SECRET}/dataset",
    *(
        f"https://host.org/v.zarr?x=1&{name}={SECRET}"
        for name in (
            *(
                "code",
                "private_key",
                "auth_key",
                "pat",
                "sas",
                "hmac",
                "subscription-key",
                "session",
                "sessionId",
                "PHPSESSID",
            ),
            *(
                "Ocp-Apim-Subscription-Key",
                "x-functions-key",
                "apiKey",
                "APIKEY",
                "api%5fkey",
                "%74oken",
                "api%255Fkey",
                "db_pass",
            ),
            *(
                "clientSecret",
                "refreshToken",
                "X-Amz-Security-Token",
                "X-Amz-Credential",
                "authCode",
                "code_verifier",
                "gh_pat",
            ),
            *(
                "sasToken",
                "sas_url",
                "hmacSha256",
                "userpwd",
                "id_token_hint",
                "amp;sig",
                "oauth_nonce",
                "passphrase",
                "otp",
                "x-auth",
            ),
        )
    ),
    f"https://account.blob.core.windows.net/v?sv=2024&se=2026-01-01&sp=rl&x={SECRET}",
    f"https://host.org/v;jsessionid={SECRET}/x",
    f"https://host.org/v?next=https%3A%2F%2Fme%3A{SECRET}%40other.org%2F",
    f"https://host.org/v?next=%2Fa%3Ftoken%3D{SECRET}",
    f"https:\\/\\/me:{SECRET}@host.org\\/v",
    f"https://host.org/v?x=1\\u0026sig={SECRET}",
    f"https://me:pa'{SECRET}@host.org/v",
    f'https://me:pa"{SECRET}@host.org/v',
    f"https://me:pa' {SECRET}@host.org/v",
    f"https://me:<{SECRET}>@host.org/v",
    f"https://me:p@{SECRET}/x@host.org/v",
    f"https://me:p;{SECRET}&x@host.org/v",
    f"https://host.org/v?password=pa'{SECRET}",
    f"https://host.org/v?password=pa {SECRET}&x=1",
    f"https://:{SECRET}@host.org/v",
    "https://host.org/ghp_s3cr3ts3cr3ts3cr3ts3cr3ts3cr3t/v",
]

HARMLESS = [
    "/data/v.zarr",
    "/data/me:secret@host/v.zarr",
    "/data/v.zarr?token=1",
    "s3://bucket/v.zarr",
    "https://host.org:8080/a@b/v.zarr",
    "https://[2001:db8::1]:443/v.zarr",
    "https://host.org/v?version=3&level=0&userProject=em",
    "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/em/v.zarr",
    "zip://a.zarr::s3://bucket/v.zip",
    "abfss://container@account.dfs.core.windows.net/v.zarr",
    "memory://v",
    "https://host.org/v?status_code=404&country_code=de&sort_key=z&design=1&sessions=3&encode=1&monkey=2",
    "https://host.org/v?se=1",
    "https://host.org/v%20x/a%26b.zarr",
    "https://host.org:8080/v, https://other.org:80: refused",
]

TOLD = [
    "Authorization: Bearer {}",
    "Authorization: Basic dXNlcjo{}=",
    "'authorization': 'token {}'",
    "Proxy-Authorization: Basic {}A==",
    "Bearer {} was not accepted",
    "x-amz-security-token: {}",
    "X-Api-Key: {}",
    "headers={{'api-key': '{}', 'Accept': '*/*'}}",
    "{{'Ocp-Apim-Subscription-Key': b'{}'}}",
    '{{"password": "{}"}}',
    '{{"a": {{"clientSecret":"pa\\"{}"}}}}',
    "ClientError('{{\\'secret\\': \\'{}\\'}}')",
    '"{{\\"password\\": \\"{}\\"}}"',
    "password='pa'{}'",
    'password="pa\'{} x"',
    "password=pa'{}",
    "password='correct horse {}'",
    "Session(access_key='AKIA', secret_key='{}', token=None)",
    "aws_secret_access_key = {}",
    "AWS_SECRET_ACCESS_KEY={}",
    "the access key: {}",
    "DefaultEndpointsProtocol=https;AccountName=em;AccountKey=a/{}+b==;EndpointSuffix=core.windows.net",
    "SharedAccessSignature=sv=2024&sig={}&se=1",
    "--password {} --x",
    "['--api-key', '{}']",
    "[('X-Auth-Token', '{}')]",
    "Cookie: a=1; session={}",
    "Set-Cookie: sid={}; Path=/",
    "<SecretAccessKey>{}</SecretAccessKey>",
    "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
    "code={}",
    "auth=('me', '{}')",
    "token=abc{}",
    '{{"session": "{}"}}',
    "pat={}, sas={}, hmac={}",
    "private%5Fkey={}",
    "//me:{}@host/v",
    "no route to https%3A%2F%2Fme%3A{}%40host",
    'caused by: OSError("GET https://me:x\'{}@host/v")',
    "url='https://host.org/v?password=x {}' in /data",
]

PROSE = [
    "code 404",
    "code: 404",
    "exit code=1",
    "session 3 tiles",
    "session: 3 tiles",
    "infer 3.1 s in 2 session(s)",
    "pass 2 of 3",
    "pass=2",
    "--set 'x' is not key=value, such as tiles.core=[64, 128, 128].",
    "key=0/c/12/3/4",
    "key: membranes",
    '{{"code": "NoSuchKey"}}',
    "An error occurred (AccessDenied) when calling the GetObject operation: Access Denied",
    "signature: of 12 files",
    "unexpected token: '}}'",
    "authorization: denied by policy",
    "the password: required, but not there",
    "token=None, password=None, secret=''",
    "Basic arithmetic operations",
    "tokens: 32000, tokenizer",
    "Unable to locate credentials",
    "Give them in the environment: AWS_PROFILE, AWS_ACCESS_KEY_ID.",
    "ended by StorageError: 'a:b' at 10:31:12, tile=12 worker=n1-3",
    "2026-11-22T18:00:00.125Z DEBUG infer tile=12 worker=n1-3: done in 3.1 s",
    "checkpoint 'em-3d.safetensors', weights 0a1b2c3d4e5f, version 20261122T1800",
    "ask me@host.org, or see https://host.org/a",
    "write to https://host.org:8080: refused; ask me@host.org",
    "monkey=banana1234, authors: me1234",
    "pip install -c deploy/constraints.txt -e '.[s3]'",
]


@pytest.mark.parametrize("url", CARRYING)
def test_credentials_are_found_wherever_a_url_can_carry_them(url):
    """Passwords are typed with any sign in them, and each cloud signs in its own words."""
    assert carried(url) in ("a user or a password", "a signature, a token or a key")
    assert shown(url) == "(not shown: it carries credentials)"


@pytest.mark.parametrize("url", HARMLESS)
def test_harmless_paths_and_urls_pass(url):
    """The negative control: a port, an access point and Azure's containers are no credentials."""
    assert carried(url) is None
    assert shown(url) == redacted(url) == url


@pytest.mark.parametrize("url", CARRYING)
def test_what_libraries_say_is_written_without_its_secrets(url):
    """A message quotes URLs that it was given, or made: redirected and signed ones too."""
    told = redacted(f"403, message='Forbidden', url='{url}' in /data/x")
    assert SECRET not in told
    assert told.startswith("403, message='Forbidden', url='")
    assert told.endswith("' in /data/x")


@pytest.mark.parametrize("around", ["{}", "no {}", 'say("{}")', "<{}>", "{}\nat https://other.org/a", "a {} b\n"])
def test_no_secret_of_a_url_is_left_whatever_stands_around_it(around):
    """Libraries quote as they like, or not at all."""
    told = [redacted(around.format(url)) for url in CARRYING]
    assert not [one for one in told if SECRET in one]


@pytest.mark.parametrize("text", TOLD)
def test_secrets_beside_urls_are_blotted_out(text):
    """Headers, options, JSON, reprs and documents of stores, in errors within errors."""
    told = text.format(*[SECRET] * text.count("{}"))
    assert SECRET not in redacted(told)
    assert SECRET not in redacted(f"RuntimeError({told!r})")
    assert SECRET not in redacted(f"failed:\n  {told}\nand more")
    assert shown(told) == "(not shown: it carries credentials)"


@pytest.mark.parametrize("text", PROSE)
def test_ordinary_text_stays_as_it_is(text):
    """The negative control: a log that is blotted out everywhere tells nobody anything."""
    told = text.replace("{{", "{").replace("}}", "}")
    assert redacted(told) == told


def test_a_long_text_is_searched_in_time_that_grows_with_it():
    """A message may quote a page, or a thousand names."""
    for text in (
        "a" * 200_000,
        "://" * 20_000,
        "password " * 20_000,
        "key='" * 20_000,
        "%41" * 30_000,
        "'" * 50_000,
        "a=b," * 30_000,
    ):
        began = time.process_time()
        redacted(text)
        assert time.process_time() - began < 10


def test_the_place_of_a_secret_is_still_told():
    """Which store refused is what the reader needs."""
    assert redacted(f"https://me:{SECRET}@host.org/v?x=1") == "https://***@host.org/v?x=1"
    assert redacted(f"https://host.org/v?sig={SECRET}") == "https://host.org/v?***"


def test_a_text_is_searched_whole():
    """A pasted YAML, or a list of URLs, is as telling as one URL."""
    assert carried(f"input:\n  url: https://me:{SECRET}@host/v\noutput: ...")
    assert carried(f"['/data/a', 'https://host/v?sig={SECRET}']")
    assert carried("input: {url: s3://bucket/v}  # ask me@host.org") is None
