import pytest

from meshlib.routing.path_template import compile_template


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
    ],
)
def test_template(template: str, path: str, expected: bool) -> None:
    assert compile_template(template)(path) == expected


@pytest.mark.parametrize("template", ["a", "/{x", "/{}", "/{x}/{x}", "/**/a", "/{x=}", "/{x=**}/b", "/a}"])
def test_bad_template_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        compile_template(template)
