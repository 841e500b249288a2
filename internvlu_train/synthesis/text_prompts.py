"""What a person would ask for: prompts, instructions and questions of the domain text, in two languages."""

from . import LanguageChoices
from .colours import CALLED, called
from .layout import Block, is_wide
from .media import Piece

ROLES = {
    "title": "标题",
    "slogan": "标语",
    "date": "日期",
    "place": "地点",
    "price": "票价",
    "name": "名字",
    "job": "职位",
    "phone number": "电话号码",
    "address": "地址",
    "wish": "祝福语",
    "genre": "体裁",
    "author": "作者",
    "heading": "抬头",
    "sign": "文字",
    "caption": "文字",
    "top caption": "上方文字",
    "bottom caption": "下方文字",
    "left caption": "左边文字",
    "right caption": "右边文字",
}
ORDER = ("first", "second", "third", "fourth", "fifth", "sixth")
SHEETS = ("海报", "名片", "贺卡", "横线纸", "便利贴", "旧纸", "梗图")  # what Chinese counts in 张
BOARDS = ("路牌", "指示牌", "店铺招牌", "霓虹灯招牌", "黑板", "白板")  # in 块
LOOKS = {
    "sans": ("sans-serif", "无衬线"),
    "serif": ("serif", "衬线"),
    "slab": ("slab serif", "粗衬线"),
    "poster": ("condensed poster", "窄体海报"),
    "hand": ("handwritten", "手写"),
    "script": ("brush script", "花体"),
}
SCENES = {
    "plaster": ("on a plain wall", "背景是素色墙面"),
    "concrete": ("on a concrete surface", "背景是水泥面"),
    "brick": ("on a brick wall", "背景是砖墙"),
    "wood": ("on a wooden surface", "背景是木板"),
    "fabric": ("on a piece of cloth", "背景是布面"),
    "sky": ("outdoors, with hills and sky behind it", "在户外，背后是山丘和天空"),
    "lights": ("in front of blurred lights at night", "背景是夜晚模糊的灯光"),
    "": ("", ""),
}


def quoted(choices: LanguageChoices, text: str) -> str:
    """A text in quotation marks of the prompt's language, the same in all of a prompt."""
    if not choices.marks:
        choices.marks = choices.pick(("“”", "“”", "「」", "『』") if choices.language == "zh" else ('""', '""', "“”"))
    return choices.marks[0] + text + choices.marks[1]


def role_name(choices: LanguageChoices, role: str) -> str:
    """What a block is called, such as "title" or "line 2"."""
    if choices.language == "en":
        return f"{ORDER[int(role[5:]) - 1]} line" if role.startswith("line ") else "text" if role == "sign" else role
    return f"第{'一二三四五六七八九'[int(role[5:]) - 1]}行" if role.startswith("line ") else ROLES[role]


def ink_name(block: Block, language: str) -> str:
    """The name of a block's colour: of the light around it if it is neon."""
    shown = block.style.second if block.style.effect == "glow" else block.style.colour
    return called(CALLED[shown], language)


def look_name(block: Block, language: str) -> str:
    """What kind of letters a block has."""
    look = "hand" if block.style.wobble else block.style.face.look
    return LOOKS[look][language == "zh"]


def article(words: str) -> str:
    """Words with "a" or "an"."""
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


def counted(thing: str) -> str:
    """The measure word of a thing's Chinese name, such as that after 一."""
    return "张" if thing in SHEETS else "块" if thing in BOARDS else "个"


def font_name(look: str) -> str:
    """The Chinese name of a kind of letters as that of a font."""
    name = LOOKS[look][1]
    return name if name.endswith("体") else f"{name}字体"


def listed(items: list[str], last: str) -> str:
    """Items in a row, with a word before the last."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])}{last}{items[-1]}"


def request(choices: LanguageChoices, piece: Piece) -> str:
    """A prompt for a picture of a piece, with all its words."""
    return choices.pick(requests(choices, piece))


def requests(choices: LanguageChoices, piece: Piece) -> tuple[str, ...]:
    """All forms of the prompt. The first describes the picture and asks for nothing."""
    return (requests_zh if choices.language == "zh" else requests_en)(choices, piece)


def requests_en(choices: LanguageChoices, piece: Piece) -> tuple[str, ...]:
    ground, thing, scene = called(piece.ground, "en"), piece.name[0], SCENES[piece.scene][0]
    texts = [quoted(choices, block.text) for block in piece.blocks]
    coloured = f"{ground} {thing}"
    roles = [f"the {role_name(choices, block.role)} {text}" for block, text in zip(piece.blocks, texts, strict=True)]
    styled = [
        f"{text} in {ink_name(block, 'en')} {look_name(block, 'en')} letters"
        for block, text in zip(piece.blocks, texts, strict=True)
    ]
    where = f" {scene}" if scene else ""
    comma = f", {scene}" if scene else ""
    several = len(texts) > 1
    order, rows = ("From top to bottom ", ", one below the other") if several else ("", "")
    return (
        f"{article(coloured).capitalize()} that reads {listed(texts, ' and ')}{comma}.",
        f"{article(coloured).capitalize()}{where}. {order}{'it' if several else 'It'} says {listed(texts, ', ')}.",
        f"A photo of {article(coloured)} with {listed(roles, ' and ')}{comma}.",
        f"Design {article(thing)} with {article(ground)} background{comma}. "
        + " ".join(
            f"{role_name(choices, block.role).capitalize()}: {text}."
            for block, text in zip(piece.blocks, texts, strict=True)
        ),
        f"Make {article(thing)}{where}. Write {listed(styled, ', and ')}.",
        f"{thing.capitalize()}, {ground} background{comma}, text {', '.join(texts)}",
        f"Please draw {article(coloured)}{where}. The words on it are {listed(texts, ' and ')}{rows}.",
        f"I need {article(thing)}{where}. It should show {listed(styled, ', then ')}. The background is {ground}.",
        f"{article(thing).capitalize()} with the words {'; '.join(texts)}{comma}.",
        f"Create an image of {article(coloured)} on which one can read {listed(texts, ' and ')}{comma}.",
    )


def requests_zh(choices: LanguageChoices, piece: Piece) -> tuple[str, ...]:
    ground, thing, scene = called(piece.ground, "zh"), piece.name[1], SCENES[piece.scene][1]
    texts = [quoted(choices, block.text) for block in piece.blocks]
    roles = [f"{role_name(choices, block.role)}是{text}" for block, text in zip(piece.blocks, texts, strict=True)]
    styled = [
        f"{ink_name(block, 'zh')}{look_name(block, 'zh')}字{text}"
        for block, text in zip(piece.blocks, texts, strict=True)
    ]
    comma, one = f"，{scene}" if scene else "", f"一{counted(thing)}"
    order = "从上到下依次写着" if len(texts) > 1 else "写着"
    last = f"{'、'.join(texts[:-1])}和{texts[-1]}" if len(texts) > 1 else texts[0]
    return (
        f"{one}{ground}的{thing}{comma}，上面写着{'、'.join(texts)}。",
        f"画{one}{ground}{thing}{comma}，{order}{'，'.join(texts)}。",
        f"生成一张{thing}的照片{comma}，{'，'.join(roles)}。",
        f"设计{one}{thing}，底色是{ground}{comma}。"
        + "".join(
            f"{role_name(choices, block.role)}：{text}。" for block, text in zip(piece.blocks, texts, strict=True)
        ),
        f"请制作{one}{thing}{comma}，内容包括{'、'.join(styled)}。",
        f"{thing}，{ground}底{comma}，文字：{'，'.join(texts)}",
        f"帮我画{one}{thing}{comma}，上面的文字是{last}。",
        f"我需要{one}{ground}的{thing}{comma}，{'，'.join(roles)}。",
        f"{thing}{comma}。文字是{'，'.join(styled)}，底色是{ground}。",
        f"一张图片：{ground}{thing}{comma}，能清楚地读到{'、'.join(texts)}。",
    )


def change(choices: LanguageChoices, piece: Piece, old: Block, new: Block, words: tuple[str, str] | None) -> str:
    """The instruction to write other words. words: (old, new) if one word is another."""
    a, b = (quoted(choices, text) for text in (words or (old.text, new.text)))
    whole, role = quoted(choices, new.text), role_name(choices, old.role)
    if choices.language == "zh":
        thing = piece.name[1]
        forms = [
            f"把{a}改成{b}。",
            f"将{thing}上的{a}替换为{b}。",
            f"请把文字{a}换成{b}，其他保持不变。",
            f"修改文字：{a}改为{b}。",
            f"让{role}显示为{whole}。",
            f"{role}应该写{whole}，其余不动。",
            f"编辑图片，把{a}变成{b}，保持字体和颜色。",
            f"{thing}上不要写{a}，要写{b}。",
        ]
    else:
        thing = piece.name[0]
        forms = [
            f"Change {a} to {b}.",
            f"Replace {a} with {b}.",
            f"On the {thing}, write {b} instead of {a}.",
            f"Make the {role} read {whole}.",
            f"Edit the text: {a} becomes {b}. Keep everything else.",
            f"The {thing} should say {b}, not {a}.",
            f"Swap {a} for {b}, in the same style.",
            f"Please correct the {role}: it has to be {whole}.",
        ]
    return choices.pick(forms)


def add(choices: LanguageChoices, piece: Piece, place: int) -> str:
    """The instruction to write words where there are none."""
    block = piece.blocks[place]
    text, role = quoted(choices, block.text), role_name(choices, block.role)
    at = beside(choices, piece, place)
    if choices.language == "zh":
        thing, ink = piece.name[1], ink_name(block, "zh")
        forms = [
            f"{at}加上文字{text}。",
            f"{at}用{ink}写上{text}。",
            f"请{at}添加{text}，其他保持不变。",
            f"给{thing}加上{role}：{text}。",
            f"这{counted(thing)}{thing}缺少{role}，请补上{text}。",
            f"{at}增加一行字{text}，颜色为{ink}。",
        ]
    else:
        thing, ink = piece.name[0], ink_name(block, "en")
        forms = [
            f"Add the text {text}{at}.",
            f"Write {text}{at} in {ink}.",
            f"Put {text}{at or ' on the ' + thing}. Leave the rest as it is.",
            f"Add {article(role)} to the {thing}: {text}.",
            f"The {role} is missing from the {thing}. Write {text}{at}.",
            f"Insert {text}{at}, in {ink} letters.",
        ]
    return choices.pick(forms)


def beside(choices: LanguageChoices, piece: Piece, place: int) -> str:
    """Where a block is, seen from its neighbour, to be put before (Chinese) or after (English) what is done there."""
    if len(piece.blocks) == 1:
        return ""
    block, near = piece.blocks[place], piece.blocks[place - 1 if place else 1]
    abreast = block.box[1] < near.box[3] and near.box[1] < block.box[3]
    after = near.box[not abreast] < block.box[not abreast]
    other = quoted(choices, near.text)
    if choices.language == "zh":
        return f"在{other}{(('上方', '下方'), ('左边', '右边'))[abreast][after]}"
    return f" {(('above', 'below'), ('to the left of', 'to the right of'))[abreast][after]} {other}"


def remove(choices: LanguageChoices, piece: Piece, block: Block) -> str:
    """The instruction to take words away."""
    text, role = quoted(choices, block.text), role_name(choices, block.role)
    if choices.language == "zh":
        thing = piece.name[1]
        forms = [
            f"去掉文字{text}。",
            f"删除{thing}上的{text}。",
            f"请把{role}{text}擦掉，背景保持不变。",
            f"移除{text}这几个字。",
            f"{thing}上不应该有{text}，请去掉。",
            f"清除{role}，其他不变。",
        ]
    else:
        thing = piece.name[0]
        forms = [
            f"Remove the text {text}.",
            f"Delete {text} from the {thing}.",
            f"Erase {text} and keep the background.",
            f"Take away the {role} that says {text}.",
            f"The {thing} should not say {text}. Remove it.",
            f"Get rid of the {role}, leave all else unchanged.",
        ]
    return choices.pick(forms)


def restyle(choices: LanguageChoices, piece: Piece, block: Block, ink: str = "", look: str = "") -> str:
    """The instruction to write the same words in another ink, or in another kind of letters."""
    text, role = quoted(choices, block.text), role_name(choices, block.role)
    if choices.language == "zh":
        if ink:
            name = called(ink, "zh")
            forms = [
                f"把{text}变成{name}。",
                f"将文字{text}的颜色改为{name}。",
                f"{role}用{name}显示。",
                f"请让{text}这行字变为{name}，其他不变。",
            ]
        else:
            name = font_name(look)
            forms = [
                f"把{text}改成{name}。",
                f"{role}换成{name}。",
                f"用{name}重写{text}，内容不变。",
                f"请将{text}的字体换为{name}。",
            ]
    elif ink:
        name = called(ink, "en")
        forms = [
            f"Make {text} {name}.",
            f"Change the colour of {text} to {name}.",
            f"The {role} should be {name}.",
            f"Write {text} in {name} instead. Keep the words.",
        ]
    else:
        name = LOOKS[look][0]
        forms = [
            f"Set {text} in a {name} font.",
            f"Use {name} letters for the {role}.",
            f"Rewrite {text} in a {name} typeface.",
            f"Keep the words {text}, but make the font {name}.",
        ]
    return choices.pick(forms)


def question(choices: LanguageChoices, piece: Piece) -> tuple[str, str]:
    """(a question about the words, its answer)."""
    zh = choices.language == "zh"
    thing = piece.name[zh]
    if choices.flip(0.3):
        answer = "\n".join(block.text for block in piece.blocks)
        forms = (
            [f"{thing}上写了什么？请逐行列出。", "读出图片中的所有文字。", f"把{thing}上的文字全部抄下来。"]
            if zh
            else [
                f"What is written on the {thing}? Give each text on its own line.",
                "Read all the text in the picture.",
                f"Transcribe the words on the {thing}.",
            ]
        )
        return choices.pick(forms), answer
    block = choices.pick(piece.blocks)
    role = role_name(choices, block.role)
    forms = (
        [f"{thing}上的{role}是什么？", f"图中的{role}写了什么？", f"请读出{role}。"]
        if zh
        else [
            f"What does the {role} on the {thing} say?",
            f"What is the {role} on the {thing}?",
            f"Read the {role} in the picture.",
        ]
    )
    return choices.pick(forms), block.text


def language_of(text: str) -> str:
    """The language that a text is written in."""
    return "zh" if any(map(is_wide, text)) else "en"
