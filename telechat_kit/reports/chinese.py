"""Pages in Chinese: the fixed texts of a page by their English form; figures and names stay as they are.

Charts keep their English labels: Matplotlib brings no Chinese glyphs. What has no entry here stays English.
"""

import re
from functools import cache

from bs4 import BeautifulSoup
from bs4.element import NavigableString

#: English text -> Chinese; `{}` stands for what varies and is taken over in its order
PHRASES = {
    "Report": "报告",
    "1 Set-up": "1 环境",
    "2 Quantize": "2 量化",
    "3 Precision": "3 精度",
    "4 Performance": "4 性能",
    "5 Summary": "5 汇总",
    "Made with telechat-kit {}": "由 telechat-kit {} 生成",
    "{}: float against W8A8": "{}：浮点与 W8A8 对比",
    "W8A8 at level {}, on {} ({} tokens): perplexity rises by {} %, the next token is float's at {} % of the positions.": "W8A8（回退级别 {}）在 {}（{} 个词元）上：困惑度上升 {} %，在 {} % 的位置上下一个词元与浮点相同。",
    "W8A8 at level {}, on {} ({} tokens): perplexity falls by {} %, the next token is float's at {} % of the positions.": "W8A8（回退级别 {}）在 {}（{} 个词元）上：困惑度下降 {} %，在 {} % 的位置上下一个词元与浮点相同。",
    "W8A8 at level {}, on {} ({} tokens): no difference of perplexity is shown (change {} %), the next token is float's at {} % of the positions.": "W8A8（回退级别 {}）在 {}（{} 个词元）上：困惑度未显示出差异（变化 {} %），在 {} % 的位置上下一个词元与浮点相同。",
    "W8A8, on {} ({} tokens): perplexity rises by {} %, the next token is float's at {} % of the positions.": "W8A8 在 {}（{} 个词元）上：困惑度上升 {} %，在 {} % 的位置上下一个词元与浮点相同。",
    "W8A8 as given, on {} ({} tokens): perplexity rises by {} %, the next token is float's at {} % of the positions.": "所给 W8A8 权重在 {}（{} 个词元）上：困惑度上升 {} %，在 {} % 的位置上下一个词元与浮点相同。",
    "W8A8, on {} ({} tokens): perplexity falls by {} %, the next token is float's at {} % of the positions.": "W8A8 在 {}（{} 个词元）上：困惑度下降 {} %，在 {} % 的位置上下一个词元与浮点相同。",
    "W8A8 as given, on {} ({} tokens): perplexity falls by {} %, the next token is float's at {} % of the positions.": "所给 W8A8 权重在 {}（{} 个词元）上：困惑度下降 {} %，在 {} % 的位置上下一个词元与浮点相同。",
    "W8A8, on {} ({} tokens): no difference of perplexity is shown (change {} %), the next token is float's at {} % of the positions.": "W8A8 在 {}（{} 个词元）上：困惑度未显示出差异（变化 {} %），在 {} % 的位置上下一个词元与浮点相同。",
    "W8A8 as given, on {} ({} tokens): no difference of perplexity is shown (change {} %), the next token is float's at {} % of the positions.": "所给 W8A8 权重在 {}（{} 个词元）上：困惑度未显示出差异（变化 {} %），在 {} % 的位置上下一个词元与浮点相同。",
    "{} of {} answers are the same to the last token.": "{1} 个回答中有 {0} 个逐词元完全相同。",
    "Mean KL from float, nats per token, at the worst: {} on text like the calibration's ({}), {} on other text ({}).": "与浮点的平均 KL（nat/词元，取最差者）：与校准文本同类的文本（{1}）为 {0}，其他文本（{3}）为 {2}。",
    "Mean KL from float, nats per token, at the worst: {} ({}). All texts are like the calibration's: what other text costs was not measured.": "与浮点的平均 KL（nat/词元，取最差者）：{0}（{1}）。所有文本均与校准文本同类，其他文本的代价未测量。",
    "Mean KL from float, nats per token, at the worst: {} ({}). No text is like the calibration's.": "与浮点的平均 KL（nat/词元，取最差者）：{0}（{1}）。没有与校准文本同类的文本。",
    "Mean KL from float, nats per token, at the worst: {} ({}). What was calibrated on is not known.": "与浮点的平均 KL（nat/词元，取最差者）：{0}（{1}）。校准所用文本未知。",
    "The weight files take {} of the size of float.": "权重文件大小为浮点的 {}。",
    "W8A8 generates {} times the tokens per second of float on {} ({} cases).": "W8A8 每秒生成的词元数为浮点的 {} 倍，设备：{}（{} 个用例）。",
    "W8A8 generates {} times the tokens per second of float on {} ({} cases; {}).": "W8A8 每秒生成的词元数为浮点的 {} 倍，设备：{}（{} 个用例；{}）。",
    "No difference of speed is shown on {}: tokens per second {} times those of float ({}).": "在 {} 上未显示出速度差异：每秒词元数为浮点的 {} 倍（{}）。",
    "How much faster W8A8 generates on {} is not shown: the runs of all {} cases vary too much.": "W8A8 在 {} 上快多少未能显示：全部 {} 个用例的各次运行相差过大。",
    "Chinese": "中文",
    "English": "英文",
    "Chinese lines": "中文行",
    "English lines": "英文行",
    "documentation": "文档",
    "chat": "对话",
    "like the calibration's": "与校准文本同类",
    "text": "文本",
    "tokens": "词元",
    "perplexity, W8A8 over float": "困惑度，W8A8 / 浮点",
    "mean KL, nats": "平均 KL，nat",
    "same first choice, %": "首选词元一致率，%",
    "yes": "是",
    "no": "否",
    "not known": "未知",
    "perplexity, {}": "困惑度，{}",
    "same most likely token, {}": "首选词元一致率，{}",
    "{} % of positions": "{} % 的位置",
    "May this be shipped?": "可以发布吗？",
    "May this be shipped? Not judged: the profile sets no limits.": "可以发布吗？未判定：参数文件没有设置限值。",
    "May this be shipped? Yes: all {} limits are kept.": "可以发布吗？可以：{} 项限值全部满足。",
    "May this be shipped? No: {} of {} limits are not kept, {} are open.": "可以发布吗？不可以：{1} 项限值中有 {0} 项不满足，{2} 项未定。",
    "May this be shipped? Look first: {} of {} limits are open, the others are kept.": "可以发布吗？请先查看：{1} 项限值中有 {0} 项未定，其余满足。",
    "Pass: the whole interval keeps the limit. Fail: the whole interval is beyond it. Look: the interval holds the limit, or there is no figure to hold against it; measure more, or decide by other means. A limit on every text is judged on the one that keeps it least.": "通过：整个区间满足限值。不通过：整个区间超出限值。查看：区间包含限值，或没有可比的数值；请多测，或以其他方式决定。对每种文本的限值按满足得最差的文本判定。",
    "limit": "限值",
    "state": "状态",
    "where": "位置",
    "pass": "通过",
    "look": "查看",
    "fail": "不通过",
    "mean KL from float, nats per token, on every text: {}": "与浮点的平均 KL（nat/词元），每种文本：{}",
    "mean KL from float, nats per token, on {}: {}": "与浮点的平均 KL（nat/词元），{}：{}",
    "perplexity, W8A8 over float, on every text: {}": "困惑度之比（W8A8 / 浮点），每种文本：{}",
    "perplexity, W8A8 over float, on {}: {}": "困惑度之比（W8A8 / 浮点），{}：{}",
    "same first choice, share of positions, on every text: {}": "首选词元一致率，每种文本：{}",
    "same first choice, share of positions, on {}: {}": "首选词元一致率，{}：{}",
    "answers equal to the last token, share: {}": "逐词元完全相同的回答比例：{}",
    "weight files, times that of {}: {}": "权重文件，相对{}的倍数：{}",
    "tokens per second, times that of {}: {}": "每秒词元数，相对{}的倍数：{}",
    "{} cases": "{} 个用例",
    "{} cases, {} left out: their runs vary too much": "{} 个用例，另有 {} 个因各次运行相差过大未计入",
    "the runs of all {} cases vary too much": "全部 {} 个用例的各次运行相差过大",
    "{} answers": "{} 个回答",
    "not measured": "未测量",
    "At a glance": "概览",
    "What int8 costs": "int8 的代价",
    "Answers side by side": "回答对照",
    "Speed": "速度",
    "Published figures": "公开数据",
    "How it was quantized": "量化方法",
    "Conditions": "测试条件",
    "The model: {}, licence {}.": "模型：{}，许可证：{}。",
    "The model: {}, licence {}. {}": "模型：{}，许可证：{}。{}",
    "Both models read the same tokens of every text, none of which was used for calibration. Intervals are bootstrapped over sequences.": "两个模型读取每种文本中相同的词元，均未用于校准。置信区间由对序列的自助法得到。",
    "The distribution is that over {} tokens of {}.": "分布取自 {1} 的 {0} 个词元。",
    "Greedy, repetition penalty {}, at most {} new tokens.": "贪心解码，重复惩罚 {}，最多生成 {} 个词元。",
    "Of what the memory and the arithmetic of the device allow, W8A8 reaches {} and float {} (medians of the cases).": "在设备内存与算力所允许的上限中，W8A8 达到 {}，浮点达到 {}（各用例的中位数）。",
    "The intervals of the medians cover the truth with {} probability (order statistics of {} repeats).": "中位数的区间以 {} 的概率覆盖真值（{} 次重复的次序统计量）。",
    "The limit follows from the bytes and operations of the shapes, and from what the device can do: it reads {} GB/s ({}).": "上限由矩阵形状的字节数与运算量以及设备的能力得出：读带宽 {} GB/s（{}）。",
    "Energy per token is that of the whole device, other programs included: {}.": "每词元能耗取自整个设备的计数器，包含其他程序的能耗：{}。",
    "From the guide that this kit reproduces: TeleChat-7B on an NPU and a GPU. Another model and other hardware than above, so they stand beside our figures and are not compared with them.": "来自本工具所复现的指南：NPU 与 GPU 上的 TeleChat-7B。模型与硬件均与上文不同，仅并列展示，不作比较。",
    "Per-channel int8 weights, one static scale and offset for each linear's input.": "权重按通道量化为 int8，每个线性层的输入使用一个静态缩放系数和偏移。",
    "What is needed to run it again.": "重新运行所需的条件。",
    "These records do not belong together": "这些记录不属于同一次运行",
    "float": "浮点",
    "W8A8 against float": "W8A8 相对浮点",
    "perplexity": "困惑度",
    "{} times": "{} 倍",
    "{} times [{}, {}]": "{} 倍 [{}, {}]",
    "{} of positions": "{} 的位置",
    "same most likely token": "首选词元一致率",
    "weight files": "权重文件",
    "tokens/s, geometric mean of the cases": "词元/秒（各用例几何平均）",
    "figure": "指标",
    "value": "数值",
    "95 % interval": "95 % 区间",
    "perplexity, float": "困惑度，浮点",
    "perplexity, W8A8": "困惑度，W8A8",
    "perplexity ratio, W8A8 / float": "困惑度之比，W8A8 / 浮点",
    "KL(float || W8A8), nats per token, mean": "KL(浮点 || W8A8)，平均，nat/词元",
    "KL, {} % of positions at most": "KL，{} % 的位置不超过",
    "KL, largest": "KL，最大值",
    "question": "问题",
    "same tokens from the start": "开头相同的词元数",
    "similarity of the texts": "文本相似度",
    "input tokens": "输入词元",
    "output tokens": "输出词元",
    "precision": "精度",
    "tokens/s": "词元/秒",
    "interval": "区间",
    "first token, ms": "首词元，毫秒",
    "energy per token, J": "每词元能耗，焦耳",
    "per output token, ms": "每输出词元，毫秒",
    "limit, tokens/s": "上限，词元/秒",
    "batch": "批大小",
    "repeats": "重复次数",
    "95 % of them within, ms": "其中 95 % 不超过，毫秒",
    "share of the limit": "达到上限的比例",
    "note": "备注",
    "unstable": "不稳定",
    "published: TeleChat-7B int8, input / output tokens": "公开数据：TeleChat-7B int8，输入/输出词元",
    "NPU 310P, tokens/s": "NPU 310P，词元/秒",
    "GPU A10, tokens/s": "GPU A10，词元/秒",
    "mean of the 25 cases": "25 个用例的平均",
    "recipe": "配方",
    "level": "回退级别",
    "outlier suppression": "离群值抑制",
    "calibration": "校准",
    "seed": "随机种子",
    "linears in int8": "int8 线性层",
    "{} MB float, {} MB W8A8": "浮点 {} MB，W8A8 {} MB",
    "time": "时间",
    "peak memory of the process": "进程峰值内存",
    "kept in float": "保留浮点",
    "score": "得分",
    "reason": "原因",
    "condition": "条件",
    "device": "设备",
    "memory": "内存",
    "system": "系统",
    "version of {}": "{} 版本",
    "code": "代码",
    "started (UTC)": "开始时间（UTC）",
    "SHA-256, {}": "SHA-256，{}",
    "operators of {}": "算子：{}",
    "same among the five most likely": "前五词元一致率",
    "correct token's probability, mean change, points": "正确词元概率的平均变化，百分点",
    "correct token's probability, RMS change, points": "正确词元概率变化的均方根，百分点",
    "similarity": "相似度",
    "activations": "激活值",
    "source": "来源",
    "form": "形式",
    "samples": "样本",
    "tokens, all samples": "词元，全部样本",
    "tokens of a sample, smallest / median / largest": "每个样本的词元，最小 / 中位 / 最大",
    "line numbers in the file": "文件中的行号",
    "SHA-256 of the recipe": "SHA-256，配方",
    "SHA-256 of the text": "SHA-256，文本",
    "SHA-256 of the samples' token ids": "SHA-256，样本的词元编号",
    "blocks of the joined text": "拼接文本的分块",
    "lines as they are": "原样的行",
    "lines as chat prompts": "作为对话提示的行",
    "dynamic, one scale for each token": "动态，每个词元一个缩放系数",
    "static, {} range": "静态，{} 范围",
    "weights": "权重",
    "not known: the weights were given": "未知：权重为外部所给",
}
#: Elements whose text is data or not for readers
_UNTOUCHED = {"style", "template", "script", "code", "pre"}


def translate(text: str) -> str:
    """The Chinese form of a fixed text; any other text as it is."""
    if text in PHRASES:
        return PHRASES[text]
    for pattern, phrase in _patterns():
        found = pattern.fullmatch(text)
        if found:
            return phrase.format(*(PHRASES.get(value, value) for value in found.groups()))
    return text


def translate_page(page: str) -> str:
    """A whole page in Chinese."""
    soup = BeautifulSoup(page, "html.parser")
    if soup.html is not None:
        soup.html["lang"] = "zh-CN"
    for node in soup.find_all(string=True):
        if type(node) is NavigableString and node.parent is not None and node.parent.name not in _UNTOUCHED:
            text = str(node)
            shown = " ".join(text.split())
            chinese = translate(shown)
            if shown and chinese != shown:
                node.replace_with(NavigableString(chinese))
    return str(soup)


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    found = []
    for english, chinese in PHRASES.items():
        if "{}" in english:
            pattern = "(.+?)".join(re.escape(part) for part in english.split("{}"))
            found.append((re.compile(pattern), chinese))
    return found
