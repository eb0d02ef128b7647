"""Self-contained HTML pages: `page` holds their parts, `figures` draws into them.

figure = draw(lambda axes: axes.plot(xs, ys, label="gold"))
page = Page("A run", "What it is about", [Section("Versions", [Table(…), Figure(figure, "…")])])
page.write(Path("report/index.html"))
"""
