"""Sets of texts that differ in length and language, for `compare --data`.

In: a name, or a file with JSON lines. Out: texts.

Why several: short memories share most of their prompt, turns of conversations vary twentyfold in length, and the
sample has texts of a thousand tokens; what makes the one fast need not make the others so.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memvec.config.compose import sample_path

MOST_TURNS = 6  # of a conversation in one text
ENTRIES = 400  # of a set that is drawn

WHO = ("我", "我妈妈", "小林", "我们组的王老师", "隔壁的陈阿姨", "弟弟", "Anna", "客户")
WHEN = ("昨天晚上", "上个月底", "二〇二三年春天", "每个星期三下午", "刚搬到成都的时候", "周末", "放假前", "早上七点多")
DID = [
    "去医院复查，医生说膝盖恢复得不错，但还不能跑步",
    "把吉他卖了，换了一台二手相机",
    "开始学做川菜，最拿手的是麻婆豆腐",
    "和同事吵了一架，后来在电梯里又和好了",
    "报名了半程马拉松，每天下班后沿着河边跑五公里",
    "说对花生和芒果过敏，聚餐时要提前告诉餐厅",
    "养的橘猫生病了，整晚没睡，第二天请了假",
    "收到了北京一家公司的录用通知，还在犹豫要不要去",
    "看完了《三体》，觉得第二部最好看",
    "想找一位老师教女儿弹钢琴，最好离地铁站近一点",
]
THEN = ["你觉得呢？", "真没想到。", "以后再也不这样了。", "下次一起去吧！", "现在想起来还是很开心。", "😂", ""]


def chinese_turns(entries: int = ENTRIES) -> list[str]:
    """Returns turns of Chinese conversations, one to a dozen clauses long, the same at every call."""
    draw = random.Random(0)

    def clause() -> str:
        return f"{draw.choice(WHEN)}，{draw.choice(WHO)}{draw.choice(DID)}。{draw.choice(THEN)}"

    return ["".join(clause() for _ in range(min(12, 1 + int(draw.expovariate(1.0))))) for _ in range(entries)]


SETS: dict[str, Callable[[], list[str]]] = {"chinese": chinese_turns}


def read_set(name: str) -> list[str]:
    """Returns the texts of a set.

    Args:
        name: `sample`, one of `SETS`, or the path of a file with JSON lines: rows with a `text`, or conversations with
            `messages`, whose consecutive turns become texts.
    """
    if name in SETS:
        return SETS[name]()
    path = Path(sample_path() if name == "sample" else name)
    with path.open(encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [text for row in rows for text in ([row["text"]] if "text" in row else _turns(row["messages"]))]


def _turns(messages: list[dict[str, Any]]) -> Iterator[str]:
    """Yields a conversation's turns, one to `MOST_TURNS` consecutive ones in a text, drawn from a seed."""
    draw = random.Random(str(messages[0]))
    at = 0
    while at < len(messages):
        count = draw.randint(1, MOST_TURNS)
        yield "\n".join(f"{one['speaker']}: {one['text']}" for one in messages[at : at + count])
        at += count
