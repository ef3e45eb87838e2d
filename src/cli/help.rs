//! The long `--help` of each command: how it is used, its exit codes, its environment. What a command does and takes
//! stands at its arguments.

pub(super) mod tools;

/// The environment of every command that reads the store.
macro_rules! of_the_store {
    () => {
        "\
Environment:
  TIDEGATE_ETCD    client URLs of etcd, separated by commas, where neither --etcd nor --config is given
  TIDEGATE_PREFIX  under which the keys live, where neither --prefix nor --config is given
  TIDEGATE_ETCD_USER, TIDEGATE_ETCD_PASSWORD  where etcd has authentication on and no --config is given
  TIDEGATE_ETCD_CA_FILE, TIDEGATE_ETCD_CERT_FILE, TIDEGATE_ETCD_KEY_FILE  PEM files, for an https:// etcd
  TIDEGATE_LOG     as for `tidegate run`; this command itself logs nothing"
    };
}

/// The environment of those that ask the leader too.
macro_rules! of_the_leader {
    () => {
        concat!(
            of_the_store!(),
            "
  TIDEGATE_LEADER_TOKEN  a token of a reporter that may read, where the leader asks for one; --leader-token is stronger
  TIDEGATE_LEADER_CA_FILE, TIDEGATE_LEADER_CERT_FILE, TIDEGATE_LEADER_KEY_FILE  PEM files, for an https:// leader"
        )
    };
}

pub(super) const TIDEGATE: &str = "\
Examples:
  tidegate demo                            # see the closed loop, in a minute
  tidegate check config/tidegate.toml      # what is wrong with a configuration, or what it says
  tidegate run --config config/tidegate.toml
  tidegate help run                        # the long help of a command

Exit codes:
  0    done
  1    something outside failed: a port that is taken, etcd, a file that cannot be written
  2    wrong arguments or configuration
  130  interrupted before it was done

Environment:
  TIDEGATE_LOG  what is logged to stderr: error, warn, info (default), debug, trace, off, or directives
                such as tidegate=debug,h2=warn
  NO_COLOR      when set, the log has no colours";

pub(super) const RUN_ABOUT: &str = "\
Run the controller: read the members' reports, estimate what each pool can take, divide it among
the tenants, and publish the thresholds.

Several controllers may run on one etcd: one leads, the others stand by and take over within 5
seconds. Without [etcd] in the configuration all is kept in this process's memory, which is enough
to try it out. Reports and /metrics are served on the address it prints. A configuration with
mistakes is not started: all of them are printed, as `tidegate check` does.";

pub(super) const RUN: &str = "\
Examples:
  tidegate run                                      # config/tidegate.toml
  tidegate run --config /etc/tidegate.toml
  TIDEGATE_LOG=debug tidegate run 2>controller.log
  curl http://127.0.0.1:7676/metrics

Exit codes:
  0  ended by SIGINT or SIGTERM; another controller may lead at once
  1  something outside failed: the port is taken, the control loop ended
  2  wrong arguments or configuration

Environment:
  TIDEGATE_LOG  what is logged to stderr: error, warn, info (default), debug, trace, off, or directives
                such as tidegate=debug,h2=warn
  NO_COLOR      when set, the log has no colours";

pub(super) const CHECK_ABOUT: &str = "\
Check a configuration as `tidegate run` would read it, and start nothing.

All mistakes are printed at once, each on a line of its own: file, line, column, key, what was
found, what is allowed, and what was probably meant. A line with `warning:` or `advice:` does not
keep the controller from starting. A good file gives one line that says what was understood.
Certificates, keys and a password's file are read too, and are a warning where they are not good:
they may be elsewhere.

How small a tenant's threshold is for the processes that share it out is looked at too: of less than
two requests each (tokens: two of 500) `enforcement = \"shared\"` is advised, and of more than 1,000
each `local`. How many processes there are is what --members says, or with --ask what etcd knows;
else that of 10 is told as advice.";

pub(super) const CHECK: &str = "\
Examples:
  tidegate check config/tidegate.toml
  tidegate check --ask config/tidegate.toml   # asks Prometheus each query once: which series feed what
  tidegate check --members 40 config/tidegate.toml   # are thresholds too small for 40 processes?
  generate-config | tidegate check -
  tidegate check --json config/tidegate.toml | jq -r '.[] | \"\\(.line): \\(.message)\"'

Output of --json:
  An array of { file, line, column, severity (error, warning, advice), key, found, expected, suggestion,
  message }; what does not apply is null. With --ask of a good file: { mistakes, queries, members }, of each query
  { query, role, feeds: [{ pool, tenant, value, remark }], misfits: [{ series, why, words }], error }; members are
  those alive, by pool, and null where etcd was not asked.

Exit codes:
  0  the configuration is good, perhaps with warnings
  1  the output cannot be written; with --ask, a query fails or feeds nothing
  2  it has mistakes, or cannot be read

Environment:
  TIDEGATE_LOG  as for `tidegate run`; the check itself logs nothing";

pub(super) const SCHEMA_ABOUT: &str = "\
Print the JSON schema (draft 2020-12) of the configuration, for editors: completion, documentation
and mistakes while you type.

With --reference it prints every key as a TOML file with comments instead: text, range, default
and an example. Both are made from the table that the parser reads by.";

pub(super) const SCHEMA: &str = "\
Examples:
  tidegate schema > tidegate.schema.json
  tidegate schema --reference | less

In an editor with taplo (VS Code: Even Better TOML), write as the first line of the configuration:
  #:schema ./tidegate.schema.json

Exit codes:
  0  printed
  1  the output cannot be written

Environment:
  TIDEGATE_LOG  as for `tidegate run`; this command itself logs nothing";

pub(super) const COMPLETIONS_ABOUT: &str = "\
Print what a shell needs to complete tidegate's commands and options.";

pub(super) const COMPLETIONS: &str = "\
Examples, each once; then open a new shell:
  bash        tidegate completions bash > ~/.local/share/bash-completion/completions/tidegate
  zsh         tidegate completions zsh > ~/.zfunc/_tidegate
              with this in ~/.zshrc before compinit: fpath=(~/.zfunc $fpath)
  fish        tidegate completions fish > ~/.config/fish/completions/tidegate.fish
  elvish      tidegate completions elvish >> ~/.config/elvish/rc.elv
  PowerShell  tidegate completions powershell >> $PROFILE

Exit codes:
  0  printed
  1  the output cannot be written
  2  an unknown shell

Environment:
  TIDEGATE_LOG  as for `tidegate run`; this command itself logs nothing";

pub(super) const TOKEN_ABOUT: &str = "\
Make a token for a reporter: 32 random bytes of the operating system, in hex.

The token is for the services of one reporter, and for nobody else; its digest goes into the controller's
configuration, which who reads it can report nothing with. With --of the digest of a token that there is.";

pub(super) const TOKEN: &str = "\
Examples:
  tidegate token
  tidegate token --json | jq -r .token > checkout.token
  tidegate token --of checkout.token

To change a token: add the new digest beside the old one, restart the controllers one by one, give the
services the new token, then take the old digest away.

Output of --json:
  { token, token_sha256 }; token is null with --of

Exit codes:
  0  printed
  1  the operating system gives no random bytes, or the output cannot be written
  2  wrong arguments, or the file has no token in it

Environment:
  TIDEGATE_LOG  as for `tidegate run`; this command itself logs nothing";

pub(super) const OVERRIDE_ABOUT: &str = "\
Put, clear and list operators' overrides: records that are stronger than what the controller decides.

They are keys in etcd, in force in every member within a tenth of a second, with the controller dead too.
`set` and `clear` write an audit record in the same transaction, which `tidegate audit` shows.";

pub(super) const OVERRIDE: &str = concat!(
    "\
Examples:
  tidegate override set openai-gpt4o acme --set requests/minute=60 --for 30m --reason 'incident 42'
  tidegate override set openai-gpt4o '*' --block --reason 'key leaked'
  tidegate override set openai-gpt4o @capacity --scale 0.5 --until 2026-12-31T00:00:00Z --reason 'shared tonight'
  tidegate override list
  tidegate override clear openai-gpt4o acme --reason 'incident 42 is over'

Exit codes:
  0  done; for `set` also when no leader answers, since members apply it all the same
  1  etcd does not answer, the leader rejects the record, or there is nothing to clear
  2  wrong arguments

",
    of_the_store!()
);

pub(super) const OVERRIDE_SET_USAGE: &str = "tidegate override set <POOL> <TARGET> <ACTION> [OPTIONS]
       where ACTION is one of --set, --scale, --floor, --ceiling, --freeze, --block";

pub(super) const OVERRIDE_SET: &str = concat!(
    "\
Examples:
  tidegate override set openai-gpt4o acme --set requests/minute=60 --set tokens/minute=40000:8000 --reason 'incident 42'
  tidegate override set openai-gpt4o acme --floor requests/minute=10 --for 2h --reason 'a demo'
  tidegate override set openai-gpt4o acme --freeze --reason 'no changes during the release' --dry-run

A number alone keeps the ratio of burst to rate. A tenant's own override replaces that of '*', meter by meter, but a
block at either wins. @capacity takes --set or --scale.

Output of --json:
  { key, record, before, warnings, status, error }; before is null when there was none; status is accepted, rejected,
  unanswered (no leader said anything within 2 s: members apply it all the same) or dry_run; error comes with rejected.

Exit codes:
  0  written, and accepted or unanswered; or a dry run
  1  etcd does not answer, the leader rejects the record, or somebody else changed it just now
  2  wrong arguments, or no reason and no terminal to ask for it

",
    of_the_store!()
);

pub(super) const OVERRIDE_CLEAR: &str = concat!(
    "\
Examples:
  tidegate override clear openai-gpt4o acme --reason 'incident 42 is over'

Output of --json:
  { key, before, status }; status is cleared.

Exit codes:
  0  taken away
  1  there is none, etcd does not answer, or somebody else changed it just now
  2  wrong arguments, or no reason and no terminal to ask for it

",
    of_the_store!()
);

pub(super) const OVERRIDE_LIST: &str = concat!(
    "\
Examples:
  tidegate override list
  tidegate override list openai-gpt4o --json | jq -r '.[] | select(.status == \"rejected\") | .error'

Output of --json:
  An array of { pool, target, record, status, error, warning, applied }; status is accepted, rejected, unanswered (no
  leader has spoken of it yet) or ended; warning is what the leader finds odd, applied the record that it says is in
  force.

Exit codes:
  0  printed
  1  etcd does not answer, or the output cannot be written
  2  wrong arguments

",
    of_the_store!()
);

pub(super) const POLICY_ABOUT: &str = "\
Look at pools' policies in etcd, put them, take them away, and compare them with a file.

A policy in etcd has the keys of [pools.<id>] in the controller's file, as JSON. It is stronger than the file's, as a
whole; controllers and members follow within two seconds, and pools and tenants come and go by it. `put` and `clear`
write an audit record in the same transaction, which `tidegate audit` shows.";

pub(super) const POLICY: &str = concat!(
    "\
Examples:
  tidegate policy get openai-gpt4o > pool.json
  tidegate policy put openai-gpt4o pool.json --reason 'globex joins'
  tidegate policy put openai-gpt4o tidegate.toml --reason 'as in the file'
  tidegate policy diff tidegate.toml
  tidegate policy clear openai-gpt4o --reason 'the file has it now'

Exit codes:
  0  done; for `put` also when no leader answers, since the next one reads it
  1  etcd does not answer, the leader rejects the policy, there is none, or `diff` found a difference
  2  wrong arguments, or mistakes in the policy

",
    of_the_store!()
);

pub(super) const POLICY_GET: &str = concat!(
    "\
Examples:
  tidegate policy get                          # all that stand in etcd
  tidegate policy get openai-gpt4o > pool.json # one, to be changed and put again

Output of --json:
  { pool, record, revision, status, error, applied }, or an array of them; status is accepted, rejected or unanswered
  (no leader has spoken of it yet); applied is the record in force, as the leader says.

Exit codes:
  0  printed
  1  the pool has no policy in etcd, etcd does not answer, or the output cannot be written
  2  wrong arguments

",
    of_the_store!()
);

pub(super) const POLICY_PUT: &str = concat!(
    "\
Examples:
  tidegate policy put openai-gpt4o pool.json --reason 'globex joins' --dry-run
  tidegate policy get openai-gpt4o | jq '.mode = \"observe\"' | tidegate policy put openai-gpt4o - --reason 'a try'

Every mistake is told, as `tidegate check` does of a file, and then nothing is written.

Output of --json:
  { key, record, before, warnings, status, error }; before is null when there was none; status is accepted, rejected,
  unanswered (no leader said anything within 3 s) or dry_run; error comes with rejected.

Exit codes:
  0  written, and accepted or unanswered; or a dry run
  1  etcd does not answer, the leader rejects the policy, or somebody else changed it just now
  2  wrong arguments, mistakes in the policy, or no reason and no terminal to ask for it

",
    of_the_store!()
);

pub(super) const POLICY_CLEAR: &str = concat!(
    "\
Examples:
  tidegate policy clear openai-gpt4o --reason 'the file has it now'

A pool that the controller's file has not is gone with its policy: its grants are taken away, and its members fall to
their bootstrap thresholds.

Output of --json:
  { key, before, status }; status is cleared.

Exit codes:
  0  taken away
  1  there is none, etcd does not answer, or somebody else changed it just now
  2  wrong arguments, or no reason and no terminal to ask for it

",
    of_the_store!()
);

pub(super) const POLICY_DIFF: &str = concat!(
    "\
Examples:
  tidegate policy diff tidegate.toml
  tidegate policy diff tidegate.toml openai-gpt4o --json

Records are compared as they are written: a default that one of them spells out is a difference.

Output of --json:
  { <pool>: [{ key, file, etcd }] }; a side that does not have the key is null.

Exit codes:
  0  nothing in etcd says otherwise
  1  there are differences, or etcd does not answer
  2  wrong arguments, or a file that cannot be read

",
    of_the_store!()
);

pub(super) const AUDIT_ABOUT: &str = "\
List who changed what, from what to what, and why; the oldest first.

It knows what was changed by these commands, not by etcdctl. The leader keeps 30 days of it.";

pub(super) const AUDIT: &str = concat!(
    "\
Examples:
  tidegate audit --since 2d
  tidegate audit --json | jq -r '.[] | select(.by == \"mori\") | .key'

Output of --json:
  An array of { at, by, what, key, from, to, reason }; what is override_set, override_clear, import,
  policy_put or policy_clear; from is absent when there was no record, to when it was taken away.

Exit codes:
  0  printed
  1  etcd does not answer, or the output cannot be written
  2  wrong arguments

",
    of_the_store!()
);

pub(super) const STATUS_ABOUT: &str = "\
Who leads, which members are there, and how pools and etcd are. Fails when nobody leads, a pulse is stale or etcd has
an alarm, so it is a health check too.

Controllers that stand by leave no trace in etcd, and are not seen. What the leader alone knows (dialects, use, reports)
is asked of it at the address in its key; where that cannot be reached from here, it is left out, with a warning.";

pub(super) const STATUS: &str = concat!(
    "\
Examples:
  tidegate status
  tidegate status --config /etc/tidegate.toml > /dev/null || page-somebody
  tidegate status --json | jq '.pools[] | .meters'

Columns, in units per the meter's window:
  TENANTS      with grants, @default among them
  OVERRIDES    accepted ones, those too that reach nobody
  PULSE        how long ago the leader last wrote the pool's
  CAPACITY     what the law says that the pool can take
  USED ASKED   what members used and asked for
  OTHERS       what is used outside tidegate, where headers tell

Output of --json:
  { problems, warnings, leader: { name, url, term, led_for_ms },
    etcd: { endpoints, version, file_bytes, used_bytes, quota_bytes, revision, compacted_revision, errors },
    pools: { <id>: { pulse_age_ms, stale, mode, policy, overrides, dialect, reason, tenants, members,
                     meters: { <meter>: { capacity, limit, used, demand, others, overcommit, shared } } } },
    members: [{ instance, pools, mode, report_age_ms }] }
  mode is enforce, observe or off, as the pulse says; a member's own is null unless it has one. policy is file, etcd, or
  rejected: that in etcd is malformed and the last good one holds. Amounts are in units per the meter's window; shared
  is { rate, burst }, the pool's own bucket, of a meter that members count together.
  compacted_revision is null when etcd's history is whole.

Exit codes:
  0  somebody leads, each pulse is fresh, etcd has no alarm
  1  one of these is not so, or etcd does not answer
  2  wrong arguments

",
    of_the_leader!()
);

pub(super) const TOP_ABOUT: &str = "\
What the leader sees now, on one page of 80 × 24 that is drawn anew every second: what is wrong, the pools, and of one
of them the tenants, the overrides that hold, and the signals.

When the leader is gone the last page stays, with its age and the reason above it in red, and the next leader is looked
for. With --once it prints one page as plain text, for a pipe, ssh or cron.";

pub(super) const TOP: &str = concat!(
    "\
Examples:
  tidegate top
  tidegate top openai-gpt4o --every 0.5
  ssh ops@north tidegate top --once

Keys:
  q, Esc, Ctrl-C  end            Up, Down, k, j  another pool
  p               pause, go on   Tab, m          another meter

Columns of pools:
  MODE         on: limits are enforced; obs: observed; off
  METER        the one that has least left; USED of its capacity, CAP: its capacity of the provider's limit,
               OTH: what is used outside tidegate, of that limit, where headers tell
  429/M        refusals of the provider per minute, of the last ten seconds
  WAIT FLIGHT  calls that wait; in flight / at a time, where latency or a congestion signal limits them

Columns of tenants, those first for whom most wait, sorted anew every five seconds; at most 50 are told of:
  GRANTED      on the meter that is shown, overrides included, in units per its window; beside it the last 60 s
  ASKS         requests per second that it could use
  ADM REF 429  admitted, refused before they were sent, throttled by the provider, of the last ten seconds
  OVERRIDE     what an operator's override does to it; with * before it, to each tenant

Rates are differences of two answers: a dash until there are two, and anew when the leader changes.

Exit codes:
  0  ended by a key or a signal; with --once: printed
  1  the terminal fails; with --once: nobody leads, or the leader or etcd does not answer
  2  wrong arguments, or no terminal and no --once

",
    of_the_leader!()
);

pub(super) const LIMITS_ABOUT: &str = "\
What tenants are granted; with --effective what is enforced, term by term, and why.";

pub(super) const LIMITS: &str = concat!(
    "\
Examples:
  tidegate limits get openai-gpt4o
  tidegate limits get openai-gpt4o acme --effective
  tidegate limits get openai-gpt4o acme --effective --member checkout-1
  tidegate limits watch openai-gpt4o acme --effective

Exit codes:
  0  printed; for `watch`, ended by Ctrl-C
  1  etcd does not answer, or nothing is granted in this pool
  2  wrong arguments

",
    of_the_store!()
);

pub(super) const LIMITS_GET: &str = concat!(
    "\
Examples:
  tidegate limits get openai-gpt4o
  tidegate limits get openai-gpt4o acme --effective
  tidegate limits get openai-gpt4o acme --effective --member checkout-1
  tidegate limits get openai-gpt4o --json | jq '.tenants[] | {tenant, rates: .effective.meters}'

Terms of --effective, in the order in which they are put on each other:
  BASE        what the leader granted
  PULSE       times the factor of a cut that went ahead of the grants
  @CAPACITY   times what an override of @capacity leaves
  OVERRIDDEN  what the overrides of '*' and of the tenant make of that; - when nothing
  KEPT        times what is kept of it: the safe part where the member has no share of this tenant yet, and on
              the way to that when nobody leads
  BRAKE       times what a member without a leader takes off for 429s; members alone know, so it is 1 here
  SHARE       times the member's share: with --member its own, as the leader says, or an even part of the safe
              threshold while it has none (it does not use this tenant); else 1
  RATE BURST  is what is enforced; of a meter that is counted together by all members at once, and below it stands what
              the pool's own bucket gives all tenants

Output of --json:
  { pool, leader: { name, term }, state, mode, shared: { <meter>: { rate, burst } }, member, tenants: [{ tenant,
    granted, effective: { meters: { <meter>: { base, pulse, capacity, overridden, kept, brake, share, rate, burst } },
    concurrency, blocked, frozen }, overrides }], warnings }; granted is the record as it stands in etcd, mode what
    becomes of the limits: enforce, observe or off; shared has the pool's own bucket of each meter that members count
    together; warnings tell what may have been meant otherwise.

Exit codes:
  0  printed
  1  etcd does not answer, nothing is granted in this pool, or there is no such member
  2  wrong arguments

",
    of_the_leader!()
);

pub(super) const LIMITS_WATCH: &str = concat!(
    "\
Examples:
  tidegate limits watch openai-gpt4o
  tidegate limits watch openai-gpt4o acme --effective
  tidegate limits watch openai-gpt4o --json | jq -c '[.time, .tenant, .is.rate]'

It prints what holds when it begins, then a line for each change: time, tenant, meter, before, after, why.

Lines of --json:
  { time, tenant, meter, was: { rate, burst }, is: { rate, burst }, reason, overrides }; meter is concurrency for calls
  in flight, with burst null; was is null for what is new, is for what is gone.

Exit codes:
  0  ended by Ctrl-C, or nobody reads any more; while etcd does not answer it goes on trying, and says so
  1  the output cannot be written
  2  wrong arguments

",
    of_the_store!()
);

pub(super) const EXPLAIN_ABOUT: &str = "\
The last steps that changed a tenant's thresholds: what the leader was told, what the law made of it and why, who
decided the threshold, and what came out.

The leader remembers the last 64 publications of a pool that changed something, since it began to lead.";

pub(super) const EXPLAIN: &str = concat!(
    "\
Examples:
  tidegate explain openai-gpt4o acme
  tidegate explain openai-gpt4o @default --last 20
  tidegate explain openai-gpt4o acme --json | jq '.steps[-1].meters'

Columns, in units per the meter's window:
  READING     the provider's level and limit as last told, and how old that is; or stale, or missing
  USED ASKED  what members used and asked for
  OTHERS      what is used outside tidegate, where headers tell
  429S        refusals of the provider for this meter, of requests that ended lately
  LAW         headers: by what they tell; without them it grows, holds or cuts
  CAPACITY    what the law says that the pool can take
  BASE        the tenant's part; EFFECTIVE: what overrides make of it
  DECIDED BY  law, policy (the tenant's floor or ceiling) or override

Above them: overrides in force for the tenant; those of others as `taken out before`, for what they set is taken out
before the rest is divided; in a step, by how much thresholds add up to more than CAPACITY, which meters members count
together and what the pool's bucket of each was, and cuts.

Output of --json:
  { pool, tenant, mode, overrides, elsewhere, now: { <meter>: { base, effective, by } },
    steps: [{ unix_ms, term, epoch, reason, scale,
              meters: { <meter>: { reading, ended, refused, used, demand, others, level, mode, headers,
                                   overcommit, shared, capacity } },
              thresholds: { <meter>: { base, effective, by } } }] }

Exit codes:
  0  printed
  1  nobody leads, the leader does not answer, or it knows no such pool or tenant
  2  wrong arguments

",
    of_the_leader!()
);

pub(super) const EXPORT_ABOUT: &str = "\
Print all overrides, and the policies of pools that stand in etcd, as one JSON document: a backup, or to be moved to
another etcd with `tidegate import`.";

pub(super) const EXPORT: &str = concat!(
    "\
Examples:
  tidegate export > operators.json
  tidegate export | jq '.overrides.\"openai-gpt4o\"'

Output:
  { schema: 1, overrides: { <pool>: { <target>: <record> } }, policy: { <pool>: <record> } }
  A target is written as in keys, a tenant's name percent-encoded.

Exit codes:
  0  printed
  1  etcd does not answer, or a record that is not well formed was left out
  2  wrong arguments

",
    of_the_store!()
);

pub(super) const IMPORT_ABOUT: &str = "\
Put the overrides and policies of a document as `tidegate export` prints it.

All of it is checked first, and what would change is shown. What the document does not speak of stays. Each record is
written with its audit; more than 64 records take more than one transaction.";

pub(super) const IMPORT: &str = concat!(
    "\
Examples:
  tidegate import operators.json --dry-run
  tidegate import operators.json --reason 'moved to the new etcd'
  tidegate export --etcd http://old:2379 | tidegate import - --etcd http://new:2379 --yes

Output of --json:
  An array of { key, from, to }: what changes, or with --dry-run would change.

Exit codes:
  0  written; or nothing to change; or a dry run
  1  etcd does not answer, somebody else made or removed a record just now, or you said no
  2  wrong arguments, mistakes in the document, or no terminal to ask on

",
    of_the_store!()
);
