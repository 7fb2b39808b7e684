"""Near-duplicates and evaluation text in writing without spaces between words."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lmlab.data import CollectConfig, Decontamination, Document, collect
from lmlab.data.collecting.dedup import signature
from lmlab.data.collecting.words import run_factor, units

# Article 1 to 3 of the Universal Declaration of Human Rights, as the United Nations publish it.
ARTICLES = {
    "Chinese": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。人人"
    "有资格享受本宣言所载的一切权利和自由,"
    "不分种族、肤色、性别、语言、宗教、政治或其他见解、国籍或社会出身、财产、出生或其他身分等任"
    "何区别。人人有权享有生命、自由和人身安全。",
    "Japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。人間は"
    "、理性と良心とを授けられており、互いに同胞の精神を"
    "もって行動しなければならない。すべて人は、生命、自由及び身体の安全に対する権利を有する。",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกี"
    "ยรติศักดิ์และสิทธิต่างมีเหตุผลและมโนธรรมและคว"
    "รปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ"
    "ทุกคนย่อมมีสิทธิและอิสรภาพบรรดาที่กำหนดไว้ในป"
    "ฏิญญานี้โดยปราศจากความแตกต่างไม่ว่าชนิดใดบุคค"
    "ลมีสิทธิในการดำเนินชีวิตในเสรีธรรมและในความมั"
    "่นคงแห่งร่างกาย",
    "Khmer": "មនុស្សទាំងអស់កើតមកមានសេរីភាពនិងសមភាពក្នុងផ្នែ"
    "កសេចក្ដីថ្លៃថ្នូរនិងសិទ្ធិមនុស្សមានវិចារណញ្ញា"
    "ណនិងសតិសម្បជញ្ញៈជាប់ពីកំណើត"
    "ហើយគប្បីប្រព្រឹត្ដចំពោះគ្នាទៅវិញទៅមកក្នុងស្មា"
    "រតីភាតរភាពជាបងប្អូន",
}


@pytest.mark.parametrize("language", ARTICLES)
def test_a_text_with_a_few_changed_characters_is_a_near_duplicate(language, tmp_path):
    draw = random.Random(0)
    text = ARTICLES[language]
    # real sentences in many orders: documents that share words and characters, but not passages
    pieces = [text[start : start + 9] for start in range(0, len(text) - 9, 9)]
    first, other = ("".join(draw.choices(pieces, k=120)) for _ in range(2))
    changed = first[:300] + "X" + first[301:700] + "Y" + first[701:]
    documents = [Document(name, body) for name, body in (("a", first), ("b", changed), ("c", other))]
    assert len(units(first)) > 1000 > 99 and run_factor(units(first)) == 2

    class Items:
        kind = "items"

        def read(self):
            return iter(documents)

        def fingerprint(self):
            return {}

        def notices(self):
            return []

    report = collect([Items()], CollectConfig(heldout_fraction=0), 0, tmp_path, workers=1)
    assert report["dropped"]["near-duplicate"]["documents"] == {"text": 1}
    assert report["train"]["documents"] == {"text": 2}
    assert float(np.mean(signature(first) == signature(other))) < 0.5


@pytest.mark.parametrize("language", ARTICLES)
def test_evaluation_text_is_found_within_other_text(language):
    text = ARTICLES[language]
    found = Decontamination([("question", text)])
    assert found.too_short == []
    assert found.find(f"before{text[20:90]}after").source == "question"
    assert found.find(text[::-1]) is None


def test_text_with_spaces_is_compared_as_before():
    assert units("one two, three") == ["one", "two,", "three"] and run_factor(units("one two")) == 1
    assert units("一二 three") == ["一", "二", "three"]
