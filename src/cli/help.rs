//! The long `--help` of each command: how it is used, its exit codes, its environment. What a command does and takes
//! stands at its arguments.

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

Several controllers may run on one etcd: one leads, the others stand by and take over within 4
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
found, what is allowed, and what was probably meant. A line with `warning:` does not keep the
controller from starting. A good file gives one line that says what was understood.";

pub(super) const CHECK: &str = "\
Examples:
  tidegate check config/tidegate.toml
  generate-config | tidegate check -
  tidegate check --json config/tidegate.toml | jq -r '.[] | \"\\(.line): \\(.message)\"'

Output of --json:
  An array of { file, line, column, severity (error, warning), key, found, expected, suggestion, message };
  what does not apply is null.

Exit codes:
  0  the configuration is good, perhaps with warnings
  1  the output cannot be written
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

pub(super) const EMULATE_ABOUT: &str = "\
Emulate an LLM provider to test against: limits that it enforces, the headers that tell them, and
429s, on a loopback address that it prints.

It can be changed while it runs: PATCH /admin sets limits, hidden use by somebody else, and
whether it sends headers; GET /admin/state tells its settings, its levels and what it counted.";

pub(super) const EMULATE: &str = "\
Examples:
  tidegate emulate
  tidegate emulate --requests-per-minute 60 --burst-seconds 10
  curl -X PATCH http://127.0.0.1:8787/admin -d '{\"requests_per_minute\":30}'
  curl http://127.0.0.1:8787/admin/state

Exit codes:
  0  ended by SIGINT or SIGTERM
  1  something outside failed: the port is taken
  2  wrong arguments

Environment:
  TIDEGATE_LOG  what is logged to stderr: error, warn, info (default), debug, trace, off, or directives
                such as tidegate=debug,h2=warn
  NO_COLOR      when set, the log has no colours";

pub(super) const DEMO_ABOUT: &str = "\
Show the closed loop with real processes: etcd, a provider emulator, the controller as in
production, and services that embed the client.

The provider changes its limit unannounced, and an operator puts an override and lifts it. At the
end stands a table of what the provider counted. It needs etcd and etcdctl (on Debian: etcd-server
and etcd-client), takes free loopback ports, and stops everything when it ends or is interrupted.";

pub(super) const DEMO: &str = "\
Examples:
  tidegate demo
  tidegate demo > demo.txt

Exit codes:
  0    it ran to its end; the table tells what happened
  1    something outside failed: etcd is not installed, say
  2    wrong arguments
  130  interrupted; every process is stopped

Environment:
  TIDEGATE_LOG  what is logged to stderr: error, warn, info (default), debug, trace, off, or directives
                such as tidegate=debug,h2=warn
  NO_COLOR      when set, the log has no colours";
