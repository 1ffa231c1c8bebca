// The JDBC driver: server-side statements from the first use on, batches, fetch sizes, cancels.
import java.sql.*;
import java.util.Properties;

public class Jdbc {
    public static void main(String[] arguments) throws Exception {
        var environment = System.getenv();
        var url = "jdbc:postgresql://" + environment.get("PGHOST") + ":" + environment.get("PGPORT") + "/" + environment.get("PGDATABASE");
        var properties = new Properties();
        properties.put("user", environment.get("PGUSER"));
        properties.put("password", environment.get("PGPASSWORD"));
        properties.put("prepareThreshold", "1");
        properties.put("sslmode", "require");
        int rounds = Integer.parseInt(environment.get("ROUNDS"));
        try (var connection = DriverManager.getConnection(url, properties)) {
            connection.createStatement().execute("CREATE TABLE IF NOT EXISTS jdbc (a int, b text)");
            var select = connection.prepareStatement("SELECT ?::int, ?::text");
            for (int turn = 0; turn < rounds; turn++) {
                select.setInt(1, turn);
                select.setString(2, "n" + turn);
                var row = select.executeQuery();
                check(row.next() && row.getInt(1) == turn && row.getString(2).equals("n" + turn));
                connection.setAutoCommit(false);
                var insert = connection.prepareStatement("INSERT INTO jdbc VALUES (?, ?)");
                for (int n = 0; n < 300; n++) {
                    insert.setInt(1, n);
                    insert.setString(2, "x".repeat(n));
                    insert.addBatch();
                }
                check(insert.executeBatch().length == 300);
                var cursor = connection.prepareStatement("SELECT a FROM jdbc");
                cursor.setFetchSize(50);
                int rows = 0;
                for (var some = cursor.executeQuery(); some.next(); rows++) { }
                check(rows == 300);
                var savepoint = connection.setSavepoint();
                check(state(() -> connection.createStatement().execute("SELECT 1/0")).equals("22012"));
                connection.rollback(savepoint);
                connection.rollback();
                connection.setAutoCommit(true);
            }
            var slow = connection.createStatement();
            var canceller = new Thread(() -> {
                try { Thread.sleep(200); slow.cancel(); } catch (Exception error) { throw new RuntimeException(error); }
            });
            canceller.start();
            check(state(() -> slow.execute("SELECT pg_sleep(20)")).equals("57014"));
            canceller.join();
            System.out.println("JDBC " + connection.getMetaData().getDriverVersion() + ": ok");
        }
    }

    interface Action { void run() throws SQLException; }

    static String state(Action action) {
        try { action.run(); return "no error"; } catch (SQLException error) { return error.getSQLState(); }
    }

    static void check(boolean holds) {
        if (!holds) throw new AssertionError();
    }
}
