"""Ordinary English words that may stand for each other in most sentences, for swaps of words in marked text."""

GROUPS = """
big large great; small little tiny; quick fast rapid; quickly rapidly swiftly; slow unhurried; slowly gradually
begin start commence; began started commenced; beginning start outset; end finish conclude; ended finished concluded
important significant essential; hard difficult tough; easy simple effortless; easily readily effortlessly
happy glad cheerful; sad unhappy sorrowful; angry cross furious; afraid scared frightened; brave bold courageous
clever smart bright; stupid foolish silly; strange odd peculiar; common usual ordinary; usually normally generally
often frequently; sometimes occasionally; rarely seldom; always forever; maybe perhaps possibly; almost nearly
very quite extremely; many numerous; several various; enough sufficient; whole entire complete
wholly entirely completely
correct right accurate; wrong mistaken incorrect; true genuine; false untrue; clear plain obvious
clearly plainly obviously
old aged ancient; new recent fresh; rich wealthy; poor needy; strong powerful sturdy; weak feeble frail
beautiful lovely pretty; ugly unsightly; clean tidy spotless; dirty filthy grimy; quiet silent calm; loud noisy
quietly silently calmly; loudly noisily; suddenly abruptly; finally eventually; immediately instantly promptly
house home dwelling; road street lane; job task work; boss manager chief; child kid youngster; children kids youngsters
friend companion pal; friends companions pals; doctor physician; teacher instructor tutor; teachers instructors tutors
people folk persons; crowd throng; idea notion thought; ideas notions thoughts; problem trouble difficulty
problems troubles difficulties; answer reply response; answers replies responses; question query; questions queries
mistake error fault; mistakes errors faults; story tale account; stories tales accounts; trip journey voyage
gift present; place spot location; places spots locations; piece part portion; pieces parts portions; kind sort type
kinds sorts types; way manner fashion; ways manners methods; goal aim purpose; goals aims purposes; result outcome
results outcomes; chance opportunity; chances opportunities; reason cause; reasons causes; benefit advantage
benefits advantages; money cash; picture image; pictures images; forest woods; rock stone; rocks stones; sea ocean
buy purchase; bought purchased; sell trade; help assist aid; helped assisted aided; helps assists aids; try attempt
tried attempted; need require; needed required; needs requires; want wish desire; wanted wished desired; like enjoy
liked enjoyed; hate detest; hated detested; think believe suppose; thought believed supposed; know understand
say state remark; said stated remarked; says states remarks; tell inform; told informed; ask inquire; asked inquired
talk speak chat; talked spoke chatted; shout yell cry; shouted yelled cried; look glance gaze; looked glanced gazed
see notice observe; saw noticed observed; show display reveal; showed displayed revealed; shows displays reveals
find discover; found discovered; get obtain acquire; got obtained acquired; give hand offer; gave handed offered
keep retain; kept retained; hide conceal; hid concealed; build construct; built constructed; make create produce
made created produced; makes creates produces; break smash; broke smashed; fix repair mend; fixed repaired mended
change alter; changed altered; changes alters; grow increase; grew increased; reduce lessen lower
reduced lessened lowered
improve better; improved bettered; choose pick select; chose picked selected; use employ; used employed; allow permit
allowed permitted; allows permits; stop halt cease; stopped halted ceased; leave depart; left departed; arrive come
arrived came; return revert; run dash; ran dashed; walk stroll; walked strolled; jump leap; jumped leaped; laugh chuckle
laughed chuckled; eat consume; ate consumed; live dwell reside; lived dwelt resided; gather collect; gathered collected
also too besides; however nevertheless; therefore hence thus; about concerning; because since; although though
"""


def english() -> dict[str, list[str]]:
    """{word: the others of its groups}, in small letters."""
    out: dict[str, list[str]] = {}
    for group in GROUPS.replace("\n", ";").split(";"):
        words = group.split()
        for word in words:
            mine = out.setdefault(word, [])
            mine += [other for other in words if other != word and other not in mine]
    return out
