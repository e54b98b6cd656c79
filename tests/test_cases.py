"""The page of acceptance cases says what the tests claim."""

from tests import cases


def test_every_case_is_of_a_section_with_a_title():
    """A stranger who meets an id in a docstring finds on the page what it is about."""
    claimed = {case.partition(".")[0] for case in cases.claims()}

    assert sorted(claimed - cases.SECTIONS.keys()) == []


def test_the_page_is_made_anew_when_tests_claim_other_cases():
    """``python -m tests.cases`` writes it."""
    assert cases.PAGE.read_text() == cases.page()
