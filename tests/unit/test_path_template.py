import pytest

from meshlib.path_template import compile_template, compile_template_rewrite


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        ("/v/{x}/w/**", "/v/1/w/", True),
        ("/v/{x}/w/**", "/v/1/w/a/b", True),
        ("/v/{x}/w/**", "/v/1/w", False),
        ("/v/{x}/w/**", "/v//w/x", False),
        ("/*", "/a", True),
        ("/*", "/a/b", False),
        ("/*", "/", False),
        ("/{v=a/*}/c", "/a/b/c", True),
        ("/{v=a/*}/c", "/x/b/c", False),
        ("/{v=**}", "/a/b", True),
        ("/file.{ext}", "/file.txt", True),
        ("/file.{ext}", "/fileXtxt", False),
        # As Envoy 1.40 answered.
        ("/v/**/a", "/v//a", True),
        ("/v/**/a", "/v/a", False),
        ("/v/{x=**}.m3u8", "/v/1/x.m3u8", True),
        ("/v/{x=**/b}", "/v/a/b", True),
        ("/v/**/", "/v/1/2/", True),
        ("/v/**/", "/v/", False),
        ("/v/a{x}b", "/v/a1b", True),
        ("/v/a{x}b", "/v/ab", False),
        ("/v/*", '/v/"', False),
        ("/v/a*b", "/v/b", True),
        ("/v/*a", "/v/ba", True),
        ("/v/*a", "/v/a", False),
        ("/v/**a", "/v/b/a", True),
        ("/v/***", "/v/***", False),
        ("/", "/", True),
    ],
)
def test_template(template: str, path: str, expected: bool) -> None:
    assert compile_template(template)(path) == expected


@pytest.mark.parametrize(
    "template",
    [
        "a",
        "/{x",
        "/{}",
        "/{x}/{x}",
        "/**/*",
        "/{x=}",
        "/{x=**}/{y}",
        "/a}",
        "/a//b",
        "/{a}/{b}/{c}/{d}/{e}/{f}",
        "/{x}{y}",
        "/{averyveryverylongname}",
        "/a b",
        "/a?b",
        "/{x=*a}",
        "/{x=*/}",
        "/{_x}",
        "/v/{x=/a}",
    ],
)
def test_bad_template_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        compile_template(template)


@pytest.mark.parametrize(
    ("template", "rewrite", "path", "expected"),
    [
        ("/v/{x}/{y=**}", "/n/{y}/{x}", "/v/1/2/3", "/n/2/3/1"),
        ("/v/{x}/**", "/n/{x}{x}-a", "/v/1/2", "/n/11-a"),
        ("/v/{x=a/*}/c", "/{x}", "/v/a/b/c", "/a/b"),
        ("/v/{x}", "/*", "/v/1", "/*"),
        ("/v/{x}", "/{x}", "/w/1", ""),
    ],
)
def test_rewrite(template: str, rewrite: str, path: str, expected: str) -> None:
    assert compile_template_rewrite(template, rewrite)(path) == expected


@pytest.mark.parametrize("rewrite", ["n/{x}", "/{z}", "/a?b", "/{x", "/x}", "/a b", "//{x}", ""])
def test_bad_rewrite_is_refused(rewrite: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        compile_template_rewrite("/v/{x}", rewrite)
