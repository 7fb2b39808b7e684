"""Near-duplicates and evaluation text in writing without spaces between words."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lmlab.data import CollectConfig, Decontamination, Document, collect
from lmlab.data.collecting.dedup import signature
from lmlab.data.collecting.words import run_factor, units

# As people wrote them for others to read: messages of Linux-PAM 1.5.2 in its own translations (BSD license), one after
# the other, and in Thai the prompt of the task mmlu_prox_th_law of EleutherAI's harness (MIT license), and its
# subjects. The Khmer ones hold zero-width spaces, with which that writing often marks words.
TEXTS = {
    "Chinese": (
        "对不起，您的时间已经耗尽！时间即将耗尽鉴定服务无法检索到鉴定信息鉴定服务无法检索到用户身"
        "份凭证鉴定令牌不再有效；需要新的鉴定令牌无法为指定的会话创建/移除项设置用户身份凭证时出"
        "现故障已经超出服务重试的最多次数没有足够的身份凭证以访问鉴定数据密码已使用。请选择其他密"
        "码。这不是一个有效的安全上下文。底层的鉴定模块无法识别用户您是否愿意进入不同的角色或者级"
        "别？您必须立即更改密码（管理员强制）。您必须立即更改密码（密码已经过期）。您必须选择一个"
        "更长的密码。"
    ),
    "Japanese": (
        "時間が切れかかっています認証情報を回復できません認証サービスが認証情報を検索できません認"
        "証サービスがユーザー資格認定を検索できません認証トークンエージングが無効です認証トークン"
        "の有効期限切れです認証トークンはもはや有効ではありません。新しい認証トークンが必要です認"
        "証トークンをロック中です指定したセッションに対するエントリを作成/削除できません会話はイ"
        "ベントを待っています致命的エラー - 直ちに中止してくださいサービスモジュールのエラーパ"
        "スワードサービスによる予備チェックに失敗しました"
    ),
    "Thai": (
        "ต่อไปนี้เป็นคำถามปรนัย (พร้อมคำตอบ) เกี่ยวกั"
        "บ กฎหมาย คิดทีละขั้นตอนแล้วสรุปคำตอบด้วย คำต"
        "อบคือ (X) โดยที่ X คือตัวอักษรที่เป็นตัวเลือ"
        "กที่ถูกต้องชีววิทยาธุรกิจเคมีวิทยาการคอมพิวเ"
        "ตอร์เศรษฐศาสตร์วิศวกรรมศาสตร์สุขภาพประวัติศา"
        "สตร์กฎหมายคณิตศาสตร์อื่นๆปรัชญาฟิสิกส์จิตวิท"
        "ยาคำถาม:ตัวเลือก:คำตอบ: มาคิดทีละขั้นตอนกัน"
    ),
    "Khmer": (
        "សូម\u200bទោស អ្នក\u200bអស់\u200bពេល\u200bហើយ !អស់\u200bពេលបរាជ័យ\u200bក្នុ"
        "ង\u200bការ\u200bផ្ទៀងផ្ទាត់\u200bភាព\u200bត្រឹមត្រូវព័ត៌មាន\u200bផ្ទៀ"
        "ងផ្ទាត់\u200bភាព\u200bត្រឹមត្រូវ\u200bមិន\u200bអាច\u200bត្រូវ\u200bយកបាន\u200bវ"
        "ិញសេវា\u200bផ្ទៀងផ្ទាត់\u200bភាព\u200bត្រឹមត្រូវ មិន\u200bអាច\u200bទៅ"
        "\u200bយក\u200bលិខិត\u200bសម្គាល់របស់អ្នក\u200bប្រើភាព\u200bចាស់\u200bរបស់\u200b"
        "ថូខឹន\u200bផ្ទៀងផ្ទាត់\u200bភាព\u200bត្រឹមត្រូវ មិនបាន\u200bអនុញ"
        "្ញាត"
    ),
}


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_with_a_few_changed_characters_is_a_near_duplicate(language, tmp_path):
    draw = random.Random(0)
    text = TEXTS[language]
    # real sentences in many orders: documents that share words and characters, but not passages
    pieces = [text[start : start + 9] for start in range(0, len(text) - 9, 9)]
    first, other = ("".join(draw.choices(pieces, k=150)) for _ in range(2))
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


@pytest.mark.parametrize("language", TEXTS)
def test_evaluation_text_is_found_within_other_text(language):
    text = TEXTS[language]
    found = Decontamination([("question", text)])
    assert found.too_short == []
    assert found.find(f"before{text[20:90]}after").source == "question"
    assert found.find(text[::-1]) is None


def test_marks_between_words_that_nobody_sees_do_not_count():
    text = TEXTS["Khmer"]
    assert "\u200b" in text and units(text) == units(text.replace("\u200b", ""))


def test_text_with_spaces_is_compared_as_before():
    assert units("one two, three") == ["one", "two,", "three"] and run_factor(units("one two")) == 1
    assert units("一二 three") == ["一", "二", "three"]
