//! The long `--help` of what works without a controller: `headers`, `replay`, `emulate`, `demo`.

pub(in crate::cli) const HEADERS_ABOUT: &str = "\
Read a response's head as a member would, and tell what it says of the provider's limits.

It takes what `curl -i` prints: the status line, the headers, and after an empty line the body, which
matters for errors. The dialect is the one that the headers look like, or the one named; one that a
configuration teaches is named by its pool. Each header about limits is printed with what became of it;
one that told nothing, with the reason.";

pub(in crate::cli) const HEADERS: &str = "\
Examples:
  curl -si https://api.openai.com/v1/chat/completions -d @request.json | tidegate headers
  tidegate headers head.txt --dialect azure
  tidegate headers head.txt --config tidegate.toml --pool newai
  tidegate headers --json head.txt | jq .hold_s
  tidegate headers --jsonl recording.jsonl | jq -c 'select(.class == \"throttled\")'

Rows of --jsonl:
  { host, status, headers, error_body, date, usage, request: { body_bytes, max_tokens } }, a row a line;
  headers is an object of names and values, a list where a line was repeated. All but headers may be absent.

Output of --json and, an object a row, of --jsonl:
  { dialect, class, readings: [{ meter, limit, remaining, level, reset_s }], hold_s, scope,
    missing: [{ header, reason }], unread: [header] }
  class is ok, throttled, overloaded, account, too_large, failed or ignored; dialect is null when nothing
  tells it; hold_s is null when nothing says to wait; scope is the meter that refused, where it is known.

Exit codes:
  0  read, whatever it said
  1  the output cannot be written
  2  wrong arguments, an input that cannot be read, or a row that is none

Environment:
  TIDEGATE_LOG  as for `tidegate run`; this command itself logs nothing";

pub(in crate::cli) const REPLAY_ABOUT: &str = "\
Run a recording through, a row a line as `tidegate headers --jsonl` takes them, and print it as series:
for each host and model, what each response said of each meter.";

pub(in crate::cli) const REPLAY: &str = "\
Examples:
  tidegate replay recording.jsonl
  tidegate replay recording.jsonl | grep throttled

Exit codes:
  0  printed
  1  the output cannot be written
  2  wrong arguments, an input that cannot be read, or a row that is none

Environment:
  TIDEGATE_LOG  as for `tidegate run`; this command itself logs nothing";

pub(in crate::cli) const EMULATE_ABOUT: &str = "\
Emulate an LLM provider to test against.

One emulator is one account of one provider: its paths, bodies, streams, rate-limit headers and 429s, with limits that
refill all the time or when a window ends, as the provider's do, and can be changed while it runs. It keeps count of
what it admitted and refused, for whom, and of how much it really had to offer, so that a client can be judged by it.
Answers are made up: the word \"tide\", again and again. No key is asked for. It listens on loopback only.";

pub(in crate::cli) const EMULATE: &str = r#"Accounts:
  openai        POST /v1/chat/completions, user: `user`. Counts requests and tokens per minute. A request is charged its
                body's bytes / 4 in tokens when it comes; nothing is corrected.
  anthropic     POST /v1/messages, user: `metadata.user_id`. Counts requests, input tokens and output tokens per minute.
                A request is charged its body's bytes / 4 in input tokens and its max_tokens in output tokens when it
                comes; when the answer ends, also because the client went away, the output becomes what was written.
  azure         POST /openai/deployments/<name>/chat/completions, or /openai/v1/chat/completions. As openai; but when
                tokens are spent it asks to come back at once, as the real one does.
  groq          POST /openai/v1/chat/completions. As openai, with requests per day; requests per minute are limited too,
                of which no header tells. A request that never fits is 413.
  gemini        POST /v1beta/models/<model>:generateContent, or :streamGenerateContent?alt=sse. Counts requests and
                input tokens per minute, and requests per day, which ends at midnight in California. No header tells
                anything; a refusal's body has QuotaFailure and RetryInfo. No users.
  fixed-window  POST /v1/chat/completions. As openai, but all that was used is given back when the window ends: requests
                per minute and day, tokens per day, by UTC. Clients read it as dialect "sambanova".

Admin, on the same port, without a password:
  GET   /admin/state  settings, levels, counters (JSON)
  PATCH /admin        changes settings: the limits by the names of their flags (requests_per_minute, …), burst_seconds,
                      headers (true or false), overload_rate, stream_error_rate, stray_retry_after_rate, slots
                      (null for no limit; with fewer than are taken, answers under way go on), crowding,
                      hidden_<unit>_per_minute (use by somebody else; unit is requests, tokens, input_tokens or
                      output_tokens), spend_requests (somebody else takes that many now). What was used stays used.
                      Also marks the moment: `first_refusal` in the state is the first one after it.
  GET   /metrics      for Prometheus; with slots also vllm:num_requests_running, vllm:num_requests_waiting and
                      vllm:gpu_cache_usage_perc (the part of the slots that is taken), as vLLM shows them
  GET   /healthz      `ok`

Examples:
  An OpenAI account of 60 requests a minute, 10 at once; a request, and one that streams:
    tidegate emulate --requests-per-minute 60 --burst-seconds 10
    curl -i http://127.0.0.1:8787/v1/chat/completions \
      -d '{"model":"demo","messages":[{"role":"user","content":"hello"}],"user":"acme"}'
    curl -N http://127.0.0.1:8787/v1/chat/completions \
      -d '{"model":"demo","messages":[{"role":"user","content":"hello"}],
           "stream":true,"stream_options":{"include_usage":true}}'

  An Anthropic account that is overloaded once in twenty requests; a request, and one that streams:
    tidegate emulate --dialect anthropic --output-tokens-per-minute 8000 --overload-rate 0.05
    curl -i http://127.0.0.1:8787/v1/messages \
      -d '{"model":"demo","max_tokens":100,"messages":[{"role":"user","content":"hello"}],
           "metadata":{"user_id":"acme"}}'
    curl -N http://127.0.0.1:8787/v1/messages \
      -d '{"model":"demo","max_tokens":100,"messages":[{"role":"user","content":"hello"}],"stream":true}'

  A provider that refills when the minute ends; and one that tells its limits in the bodies of refusals alone:
    tidegate emulate --dialect fixed-window --requests-per-minute 60
    tidegate emulate --dialect gemini --input-tokens-per-minute 1000
    curl -i http://127.0.0.1:8787/v1beta/models/demo:generateContent -d '{"contents":[{"parts":[{"text":"hello"}]}]}'

  A server of one's own, which sends nobody away and tells no limits; what a controller sees of it; and half of it:
    tidegate emulate --slots 16 --crowding 1.5 --no-headers \
      --requests-per-minute 1000000000 --tokens-per-minute 1000000000
    curl -s http://127.0.0.1:8787/metrics | grep ^vllm:
    curl -X PATCH http://127.0.0.1:8787/admin -d '{"slots":8}'

  Halve the limit under a running client, and see what became of it:
    curl -X PATCH http://127.0.0.1:8787/admin -d '{"requests_per_minute":30}'
    curl http://127.0.0.1:8787/admin/state

  Official client libraries: base URL http://127.0.0.1:8787/v1 for OpenAI's, http://127.0.0.1:8787 for Anthropic's,
  any key. They retry by themselves; switch that off (max_retries=0) to see every refusal.

Exit codes:
  0  ended by SIGINT or SIGTERM; answers under way, streams too, had two seconds to finish
  1  cannot listen (the port is taken)
  2  wrong arguments

Environment:
  TIDEGATE_LOG  what is logged to stderr: error, warn, info (default), debug, trace, off, or directives
                such as tidegate=debug,h2=warn
  NO_COLOR      when set, the log has no colours"#;

pub(in crate::cli) const DEMO_ABOUT: &str = "\
Show the closed loop with real processes, beside static limits.

It starts an etcd, two provider emulators, two controllers as in production, and two services that
embed the client. Each request is sent twice at the same moment: through tidegate to one provider,
through static limits to the other. Both providers halve their limit unannounced and raise it
later; an operator puts an override and removes it; the leading controller is killed.

In a terminal one screen of 80 × 24 shows it as it happens. At the end stand a table of what the two
providers counted, and the path of a picture of the run. It needs etcd and etcdctl (on Debian:
etcd-server and etcd-client), takes free loopback ports and a temporary folder, never meets an etcd
of your own, and stops everything when it ends or is interrupted. What an earlier run that was
killed has left behind is cleaned up first.";

pub(in crate::cli) const DEMO: &str = "\
Examples:
  tidegate demo
  tidegate demo --duration 20s --svg /tmp/run.svg
  tidegate demo --plain | tee demo.txt
  tidegate demo --json | jq '.whole'

Output of --json:
  { seconds, phases: [{ phase, seconds, limit, adaptive, static, retuned, led_again_s }], whole, svg }
  where adaptive and static are { used, throttled, fairness, tenants, admitted, refused }: `used` and
  `throttled` are parts of 1, `limit` is in requests per minute, `retuned` tells when the last member
  had followed a change, `whole` is all phases but the first.

Exit codes:
  0    the run was played to its end
  1    something outside failed: etcd is not installed, say, or a process of the demo ended
  2    wrong arguments, or the picture cannot be written
  130  interrupted; every process is stopped

Environment:
  TIDEGATE_LOG  what its processes log into its folder: error, warn, info (default), debug, trace, off,
                or directives such as tidegate=debug,h2=warn
  TMPDIR        where its folder is made; /tmp by default
  NO_COLOR      when set, the live view has no colours";

pub(in crate::cli) const SIMULATE_ABOUT: &str = "\
Live through scenarios in simulated worlds, under our law and under others, and say how each did.

Ours is the production code: limiter, planner and law. The others are what is published of them. All see the
same requests at the same moments; efficiency, unfairness and Jain's index are against an oracle that sees the
provider's account. The same file, law and seed give the same numbers, whatever the machine.";

pub(in crate::cli) const SIMULATE: &str = "\
Examples:
  tidegate simulate config/scenarios/steady.toml
  tidegate simulate config/scenarios/*.toml --law ours --law aimd_fair --seeds 10
  tidegate simulate my.toml --law ours --json | jq '.[].throttled_ratio'
  tidegate simulate my.toml --law ours --law retry --plot my.svg
  tidegate simulate --random 200 --seed 1000 --law ours

Scenarios:
  config/scenarios/ has the format in its README and some thirty worlds; [accept.<law>] in a file says
  what its outcome is to be. Random worlds are drawn as that README says, each from its seed; of them
  one line is printed for each law.

Columns, and the fields of --json:
  EFFICIENCY efficiency    what was got against what the oracle got (LLM tokens where they are short); above 100 %
                           where others who use the account lost it
  429S throttled_ratio     refusals by the provider, of all that was sent to it
  AFTER throttled_after_event  the same of the 30 s after the first event
  UNFAIR unfairness        half the sum of what tenants got more or less than of the oracle, of all that it gave
  JAIN jain                Jain's index of what tenants got, each against what the oracle gave it; 1 is even
  P50 P99 wait_p50_s …     how long requests waited before the provider took them
  URGENT urgent_wait_p99_s the P99 of those that have a deadline
  MISSED slo_miss_ratio    requests not served within what they wait at most (patience_s), of those that have such
  CONVERGED convergence_s  from the first event until goodput is near the oracle's and few are refused
  OTHERS others_kept       requests of others that were admitted, of all of theirs
  ANSWER answer_p95_s      from sending to the answer's end
  P10, MEDIAN, P90         of random worlds: a tenth, a half, nine tenths are below

Output of --json:
  An array of { scenario, law, seed, efficiency, throttled_ratio, throttled_after_event, unfairness, jain,
  wait_p50_s, wait_p99_s, slo_miss_ratio, convergence_s, others_kept, answer_p95_s }; what does
  not apply is null.

Exit codes:
  0  done, and every outcome is within what its file accepts
  1  some outcome is outside, or the output or the picture cannot be written
  2  wrong arguments, or a file that is no scenario

Environment:
  TIDEGATE_LOG  as for `tidegate run`; simulated members log nothing";

pub(in crate::cli) const COMPARE_ABOUT: &str = "\
Live through scenarios under laws, as `tidegate simulate` does, and print a Markdown table: a line for each
scenario, a column for each law. Below it a line for each law over all runs; of random worlds that alone.";

pub(in crate::cli) const COMPARE: &str = "\
Examples:
  tidegate compare config/scenarios/*.toml --seeds 10
  tidegate compare config/scenarios/*.toml --law ours --law aimd_fair --pictures pictures/
  tidegate compare --random 200 --seed 1000

Exit codes:
  0  done
  1  the output or a picture cannot be written
  2  wrong arguments, or a file that is no scenario

Environment:
  TIDEGATE_LOG  as for `tidegate run`; simulated members log nothing";
