import pytest

from pipeline.credentials import carried, redacted, shown

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


@pytest.mark.parametrize("url", [url for url in CARRYING if " " not in url])
def test_what_libraries_say_is_written_without_its_secrets(url):
    """A message quotes URLs that it was given, or made: redirected and signed ones too."""
    told = redacted(f"403, message='Forbidden', url='{url}' in /data/x")
    assert SECRET not in told
    assert told.startswith("403, message='Forbidden', url='")
    assert told.endswith("' in /data/x")


def test_the_place_of_a_secret_is_still_told():
    """Which store refused is what the reader needs."""
    assert redacted(f"https://me:{SECRET}@host.org/v?x=1") == "https://***@host.org/v?x=1"
    assert redacted(f"https://host.org/v?sig={SECRET}") == "https://host.org/v?***"


def test_a_text_is_searched_whole():
    """A pasted YAML, or a list of URLs, is as telling as one URL."""
    assert carried(f"input:\n  url: https://me:{SECRET}@host/v\noutput: ...")
    assert carried(f"['/data/a', 'https://host/v?sig={SECRET}']")
    assert carried("input: {url: s3://bucket/v}  # ask me@host.org") is None
