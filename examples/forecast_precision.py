"""Print what each number format leaves visible of an update, and how small a delta of one step can be.

    python examples/forecast_precision.py BASE MASTER STEPS

MASTER holds the float32 weights that training has made of BASE in STEPS steps.
"""

import sys

from offprincipal.forecast import forecast


def main(base: str, master: str, steps: str) -> None:
    found = forecast(base, master, steps=int(steps))
    for update in found.summary["updates"]:
        print(update["name"])
        for form in ("fp32", "fp16", "bf16", "fp8_e4m3_scaled"):
            row = found.row(form, update["name"])
            print(f"  {form:16} counted {row['share_counted']:8.4%}   closed form {row['share_expected']:8.4%}")
    last = found.row("bf16", found.summary["updates"][-1]["name"])
    encoding, size = min(last["bytes"].items(), key=lambda each: each[1])
    print(f"smallest delta of one step in bf16 (drift): {encoding}, {size:,.0f} of {last['bytes']['dense']:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:4])
