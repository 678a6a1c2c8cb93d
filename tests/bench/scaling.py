#!/usr/bin/env python3
"""How cost grows: a table and one picture from a run of run.sh with SCALING=1.

  scaling.py DTX_JSONL PICTURE.svg TITLE      the table goes to stdout
"""
import html, json, sys

WIDTH, HEIGHT, LEFT, TOP = 300, 220, 56, 56  # of one panel; its place


def points(path):
    """[jobs, batch, seq, rank, tokens/s, ms, GiB planned beside the base], the last of equal cases."""
    found = {}
    for line in open(path):
        r = json.loads(line) if line.startswith("{") else {}
        f = r.get("case", "").split(":")
        if f[0] == "train" and float(f[5]) == 0:
            found[tuple(map(int, f[1:5]))] = (r["tokens_per_s"], r["ms_per_step"], r["gib_planned_beside_base"])
    return [k + v for k, v in sorted(found.items())]


def curves(all_points):
    seq = [(p[2], *p[4:]) for p in all_points if p[0] == 1 and p[3] == 16 and (p[1] * p[2] == 4096 or p[2] > 4096)]
    jobs = [(p[0], *p[4:]) for p in all_points if p[1:4] == (1, 512, 16)]
    rank = [(p[3], *p[4:]) for p in all_points if p[:3] == (1, 4, 1024)]
    return (("sequence length", "1 job, r16, 4096 tokens a step (8192: one row)", sorted(seq)),
            ("jobs together", "each 1 x 512 tokens a step, r16", sorted(jobs)), ("rank", "1 job, 4 x 1024", sorted(rank)))


def panel(x0, name, note, pts, top):
    out = [f'<text x="{x0}" y="{TOP - 22}" class="h">{html.escape(name)}</text>',
           f'<text x="{x0}" y="{TOP - 8}" class="n">{html.escape(note)}</text>']
    y = lambda v: TOP + HEIGHT - HEIGHT * v / top
    for v in range(0, top + 1, 5000):
        out.append(f'<line x1="{x0}" x2="{x0 + WIDTH}" y1="{y(v)}" y2="{y(v)}" class="g"/>'
                   f'<text x="{x0 - 6}" y="{y(v) + 4}" class="y">{v // 1000}k</text>')
    step = WIDTH / max(len(pts), 1)
    at = [(x0 + step * (i + 0.5), y(p[1])) for i, p in enumerate(pts)]
    out.append('<polyline class="l" points="' + " ".join(f"{a:.1f},{b:.1f}" for a, b in at) + '"/>')
    for (a, b), p in zip(at, pts):
        out.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5"/><text x="{a:.1f}" y="{b - 9:.1f}" class="v">{p[1] / 1e3:.1f}k</text>'
                   f'<text x="{a:.1f}" y="{TOP + HEIGHT + 16}" class="x">{p[0]}</text>')
    return "".join(out)


def picture(found, title):
    top = 5000 * (1 + int(max(p[1] for _, _, pts in found for p in pts)) // 5000)
    gap = WIDTH + LEFT + 20
    body = "".join(panel(LEFT + i * gap, *c, top) for i, c in enumerate(found))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{gap * len(found)}" height="{TOP + HEIGHT + 56}" '
            'font-family="sans-serif" font-size="11"><style>text{fill:#333}.h{font-weight:bold;font-size:13px}.n{fill:#777}'
            '.g{stroke:#ddd}.y{text-anchor:end}.x,.v{text-anchor:middle}.l{fill:none;stroke:#2563a8;stroke-width:2}'
            'circle{fill:#2563a8}</style><rect width="100%" height="100%" fill="#fff"/>'
            f'{body}<text x="{LEFT}" y="{TOP + HEIGHT + 44}" class="n">{html.escape("tokens per second; " + title)}</text></svg>\n')


def main():
    path, svg, title = sys.argv[1:4]
    found = [c for c in curves(points(path)) if c[2]]
    print("| what grows | value | tok/s | ms a step | GiB planned beside the base |\n|---|---|---|---|---|")
    for name, _, pts in found:
        for p in pts:
            print(f"| {name} | {p[0]} | {p[1]:,.0f} | {p[2]:.1f} | {p[3]:.1f} |")
    with open(svg, "w") as f:
        f.write(picture(found, title))


if __name__ == "__main__":
    main()
